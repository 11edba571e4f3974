"""Write the tables of resume.md: resumes by position and by name, as they happen."""

from __future__ import annotations

from typing import Any

import torch
from figures import table, write_block
from torch import Tensor, nn

import weightdecay
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.state import changes, describe, load_state_by_name, settings_by_name, state_by_name


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16))


def train(net: nn.Module, optimizer: Any, first: int, steps: int) -> Tensor:
    for step in range(first, first + steps):
        inputs = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(inputs) - inputs.roll(1, 1)).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def swapped(net: nn.Sequential) -> list[tuple[str, nn.Parameter]]:
    """The parameters with two matrices of one shape in each other's place."""
    named = dict(net.named_parameters())
    order = [{"0.weight": "2.weight", "2.weight": "0.weight"}.get(name, name) for name in named]
    return [(name, named[name]) for name in order]


def reordered() -> None:
    through = network()
    optimizer = torch.optim.AdamW(through.parameters(), lr=1e-2)
    train(through, optimizer, 0, 50)
    middle = {key: value.clone() for key, value in through.state_dict().items()}
    saved, tensors, settings = optimizer.state_dict(), *by_name(optimizer, through)
    rows = []
    for way in ("position", "name"):
        resumed = network()
        resumed.load_state_dict(middle)
        again = torch.optim.AdamW(swapped(resumed), lr=1e-2)
        if way == "position":
            again.load_state_dict(clone(saved))
        else:
            load_state_by_name(again, tensors, settings, names=resumed)
        moments = torch.equal(again.state[resumed.get_parameter("0.weight")]["exp_avg"], tensors["0.weight/exp_avg"])
        end = train(resumed, again, 50, 50)
        rows.append((way, "its own" if moments else "the other matrix's", end))
    expected = train(through, optimizer, 50, 50)
    write_block(
        "resume.md",
        "reordered",
        table(
            ["loaded by", "moments of `0.weight`", "‖w − w of the run that nothing stopped‖ / ‖w‖"],
            [[way, moments, f"{float((end - expected).norm() / expected.norm()):.1e}"] for way, moments, end in rows],
        ),
    )


def another_lambda() -> None:
    rows = []
    for name in ("torch, by position", "keep", "override"):
        net = network()
        old = AdamW(weightdecay.plan(net, weight_decay=0.1), lr=1e-2)
        train(net, old, 0, 5)
        new = AdamW(weightdecay.plan(net, weight_decay=0.4), lr=1e-2)
        if name.startswith("torch"):
            new.load_state_dict(clone(old.state_dict()))
        else:
            load_state_by_name(new, *by_name(old), on_change=name)  # type: ignore[arg-type]
        for state in new.state.values():
            state["exp_avg"].zero_()
        w = net.get_parameter("0.weight")
        before = w.detach().clone()
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        new.step()
        rows.append([name, f"{1 - float((w.detach() / before).mean()):.2e}"])
    write_block("resume.md", "first step", table(["loaded with", "decay of the first step (0.4 asked: 4e-03)"], rows))


def by_name(optimizer: torch.optim.Optimizer, net: nn.Module | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {key: value.clone() for key, value in state_by_name(optimizer, net).items()}, settings_by_name(
        optimizer, net
    )


def clone(state_dict: dict[str, Any]) -> dict[str, Any]:
    """torch shares the tensors that it loads."""
    state = {i: {key: value.clone() for key, value in kept.items()} for i, kept in state_dict["state"].items()}
    return {**state_dict, "state": state}


def report() -> None:
    net = network()
    old = AdamW(weightdecay.plan(net, weight_decay=0.1), lr=1e-2)
    new = AdamW(net.named_parameters(), lr=2e-2, weight_decay=0.1, betas=(0.9, 0.95))
    lines = describe(changes(new, settings_by_name(old)))
    write_block("resume.md", "changes", "```text\n" + "\n".join(lines) + "\n```")


if __name__ == "__main__":
    torch.set_num_threads(1)
    reordered()
    another_lambda()
    report()
