"""Optimizers of the kinds that people write themselves, each with one thing that a probe has to see."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

journal: list[int] = []


class Plain(torch.optim.Optimizer):
    """Sign descent with decoupled decay that does not know lr: `w ← (1 − λ)·w − lr·sign(g)`."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.1, **more: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **more})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.change(p, group)

    def change(self, p: Any, group: dict[str, Any]) -> None:
        p.mul_(1 - group["weight_decay"]).sub_(p.grad.sign(), alpha=float(group["lr"]))


class HiddenDecay(Plain):
    """Its λ is its own and in no group."""

    wd = 1e-4

    def change(self, p: Any, group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * self.wd).sub_(p.grad, alpha=float(group["lr"]))


class BranchesOnDecay(Plain):
    """A trust ratio where there is a λ, as LARS and LAMB."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        update = p.grad + group["weight_decay"] * p
        if group["weight_decay"]:
            update *= p.norm() / update.norm()
        p.sub_(update, alpha=float(group["lr"]))


class DecaysBehindNorm(Plain):
    """λ·w joins the momentum behind the gradient's normalisation, as in NovoGrad and FAdam."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
        momentum.mul_(0.9).add_(p.grad / p.grad.norm()).add_(p, alpha=group["weight_decay"])
        p.sub_(momentum, alpha=float(group["lr"]))


class LambdaIsAConstant(Plain):
    """Takes lr·λ off every weight, whatever it is, as torch_optimizer's SGDW does."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        p.sub_(p.grad + group["weight_decay"], alpha=float(group["lr"]))


class LambdaScalesGradient(Plain):
    """Without λ it does not step, as BSAM."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        p.sub_(group["weight_decay"] * p.grad, alpha=float(group["lr"]))


class ProjectsOrthogonal(Plain):
    """Leaves away what goes along the weights where their gradient is orthogonal to them, as AdamP."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        update = p.grad.sign()
        cosine = (p.grad * p).sum() / (p.grad.norm() * p.norm())
        if abs(cosine) < 1e-4:
            update -= p * (update * p).sum() / (p * p).sum()
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=float(group["lr"]))


class KeepsListOfGroups(Plain):
    """Has something for each group beside its groups."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.scales = [1.0 + index for index, _ in enumerate(self.param_groups)]


class ReadsMatrices(Plain):
    """A trust ratio for matrices alone."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        update = p.grad.clone()
        if p.ndim > 1:
            update *= p.norm()
        p.mul_(1 - group["weight_decay"]).sub_(update, alpha=float(group["lr"]))


class Lookahead(Plain):
    """Goes back half-way to a slow average in every k-th step."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        state = self.state[p]
        slow = state.setdefault("slow", p.clone())
        state["step"] = state.get("step", 0) + 1
        p.mul_(1 - group["weight_decay"] * group["lr"]).sub_(p.grad.sign(), alpha=float(group["lr"]))
        if state["step"] % group["k"] == 0:
            p.copy_(slow.lerp_(p, 0.5))


class DecaysAfter(Plain):
    def change(self, p: Any, group: dict[str, Any]) -> None:
        p.sub_(p.grad, alpha=float(group["lr"])).mul_(1 - 0.5 * group["weight_decay"])


class BoundMethods(Plain):
    """Keeps bound methods of itself, as HeavyBall does, in a list and a partial."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.chain: list[Any] = [self.decayed, functools.partial(self.moved, sign=-1)]
        self.calls = 0

    def decayed(self, p: Any, group: dict[str, Any]) -> None:
        self.calls += 1
        p.mul_(1 - group["lr"] * group["weight_decay"])

    def moved(self, p: Any, group: dict[str, Any], sign: int) -> None:
        p.add_(p.grad, alpha=sign * float(group["lr"]))

    def change(self, p: Any, group: dict[str, Any]) -> None:
        for link in self.chain:
            link(p, group)


class WantsTensorLr(Plain):
    """As torchao: a compiled step would be compiled anew for another float."""

    def __init__(self, params: Any, lr: float = 0.1, **settings: Any) -> None:
        super().__init__(params, lr=torch.tensor(lr), **settings)  # type: ignore[arg-type]

    def change(self, p: Any, group: dict[str, Any]) -> None:
        if not isinstance(group["lr"], Tensor):
            raise RuntimeError("lr was changed to a non-Tensor object")
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad)


class StateInConstructor(Plain):
    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"sum": torch.zeros_like(p), "count": 0}

    def change(self, p: Any, group: dict[str, Any]) -> None:
        state = self.state[p]
        state["count"] += 1
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(state["sum"].add_(p.grad), alpha=float(group["lr"]))


class ProgressInGroups(Plain):
    """Counts in the group, and warms up by what it has counted."""

    def change(self, p: Any, group: dict[str, Any]) -> None:
        group["k"] = group.get("k", 0) + 1
        p.mul_(1 - group["weight_decay"] * group["lr"])
        p.sub_(p.grad, alpha=float(group["lr"]) * min(group["k"] / 10, 1.0))


class CachesInGroup(Plain):
    """Step sizes in a list of the group, as the classic RAdam code does."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, buffer=[None] * 10, **settings)

    def change(self, p: Any, group: dict[str, Any]) -> None:
        state = self.state[p]
        state["step"] = state.get("step", 0) + 1
        cached = group["buffer"][state["step"] % 10] or (state["step"], float(group["lr"]))
        group["buffer"][state["step"] % 10] = cached
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=cached[1])


class KeepsModel(Plain):
    """Its step never looks at the model that it keeps, unless it `uses` it."""

    def __init__(self, params: Any, model: nn.Module, *, uses: bool = False, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.model, self.uses = model, uses

    def change(self, p: Any, group: dict[str, Any]) -> None:
        if self.uses:
            next(self.model.parameters())
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=float(group["lr"]))


class DrawsNumbers(Plain):
    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.generator = torch.Generator().manual_seed(3)

    def change(self, p: Any, group: dict[str, Any]) -> None:
        noise = torch.rand(p.shape, generator=self.generator) + torch.rand(p.shape)
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad * noise.to(p), alpha=float(group["lr"]))


class StepsSeldom(Plain):
    """Gathers gradients, and steps in every 64th call."""

    calls = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        if self.calls % 64 == 0:
            super().step(closure)


class LooksTwice(Plain):
    """As SAM: drops its gradients where it stands, and asks for new ones elsewhere."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is None:
            raise RuntimeError("give a closure")
        closure()
        self.zero_grad()
        with torch.enable_grad():
            closure()
        super().step()


class Lazy(Plain):
    """SGD that leaves out what has no gradient, all of a step or its decay, by elements, rows or tensors."""

    def __init__(self, params: Any, by: str = "rows", only: str = "decay", form: str = "decoupled") -> None:
        super().__init__(params)
        self.by, self.only, self.form = by, only, form

    def change(self, p: Any, group: dict[str, Any]) -> None:
        lr, decayed = float(group["lr"]), group["weight_decay"] * p
        stepped = torch.ones_like(p) if self.only == "decay" else self.touched(p)
        if self.form == "coupled":
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.mul_(0.9).add_(stepped * p.grad + self.touched(p) * decayed)
            p.sub_(momentum, alpha=lr)
        elif self.form == "behind the norm":
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.mul_(0.9).add_(p.grad / (p.grad.norm() + 1e-8)).add_(self.touched(p) * decayed)
            p.sub_(momentum, alpha=lr)
        else:
            p.sub_(self.touched(p) * decayed + stepped * p.grad.sign(), alpha=lr)

    def touched(self, p: Any) -> Any:
        if self.by == "tensors":
            return torch.full_like(p, float(p.grad.any()))
        if self.by == "rows" and p.ndim > 1:
            return (p.grad.abs().sum(1, keepdim=True) > 0).to(p)
        if self.by == "rows that had one":
            ever = self.state[p].setdefault("ever", torch.zeros(p.shape[0], dtype=torch.bool))
            ever |= p.grad.reshape(len(p), -1).any(1)
            return ever.reshape(-1, *[1] * (p.ndim - 1)).to(p)
        return ((p.grad == 0) == (self.by == "no gradient")).to(p)


class DecaysLater(Plain):
    """Begins with its decay after some steps, at once or by a warm-up of λ, beside the gradient or through it."""

    def __init__(self, params: Any, after: int, warmup: int = 1, form: str = "decoupled") -> None:
        super().__init__(params)
        self.after, self.warmup, self.form = after, warmup, form

    def change(self, p: Any, group: dict[str, Any]) -> None:
        state, lr = self.state[p], float(group["lr"])
        state["step"] = state.get("step", 0) + 1
        part = min(max(state["step"] - self.after, 0) / self.warmup, 1.0)
        decayed = part * group["weight_decay"] * p
        if self.form == "coupled":
            momentum = state.setdefault("momentum", torch.zeros_like(p))
            p.sub_(momentum.mul_(0.9).add_(p.grad + decayed), alpha=lr)
        else:
            p.sub_(p.grad.sign() + decayed, alpha=lr)


class WritesElsewhere(Plain):
    """Writes to a tensor that it did not make: the average of a model, say."""

    elsewhere = torch.zeros(3)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        write_elsewhere()
        super().step(closure)


def write_elsewhere() -> None:
    WritesElsewhere.elsewhere.add_(1)
