from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightdecay
from tests.references import directions, rules
from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.clipping import clipped_step
from weightdecay.optim.muon import Muon
from weightdecay.optim.orthogonal import orthogonalised
from weightdecay.optim.state import load_state_by_name, settings_by_name, state_by_name
from weightdecay.rules import RULES

SHAPES = ((5, 8), (9, 4), (6, 6))


def parameters(shapes: Any = SHAPES, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def step(optimizer: torch.optim.Optimizer, number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
    gradients = [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
    optimizer.step()
    return gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("settings", [
    {}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False, "momentum": 0.8, "ns_steps": 3},
])  # fmt: skip
def test_on_matrices_muon_equals_torchs_bit_for_bit(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    ours, theirs = parameters(dtype=dtype), parameters(dtype=dtype)
    mine = Muon(ours, lr=0.02, weight_decay=0.1, **{"adjust_lr_fn": "original", **settings})
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, **settings)
    for number in range(5):
        step(mine, number)
        step(reference, number)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


NANOCHAT: dict[str, Any] = {
    "adjust_lr_fn": "original",
    "orthogonalisation": "polar_express",
    "equal_rows": True,
    "neuron_beta2": 0.9,
}
# name -> settings of ours, of its twin
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "original": ({"nesterov": False, "adjust_lr_fn": "original"}, {"nesterov": False, "match_adamw": False}),
    "nanochat": (NANOCHAT, {"match_adamw": False, "polar_express": True, "equal_rows": True, "beta2": 0.9}),
    "evened": ({"neuron_beta2": 0.8, "ns_steps": 3}, {"beta2": 0.8, "steps": 3}),
    "longer": ({"orthogonalisation": "polar_express", "ns_steps": 7}, {"polar_express": True, "steps": 7}),
}


@pytest.mark.parametrize("rule", [name for name in RULES if name != "l2"])
@pytest.mark.parametrize("stacked", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_muon_follows_every_rule_as_its_twin_does(rule: Any, stacked: int, form: str) -> None:
    shapes = ((6, 8), (9, 4), (9, 3), (3, 6, 4))
    params = parameters(shapes)
    groups = [{"params": params, "stacked": stacked}]
    ours, its = FORMS[form]
    optimizer = Muon(groups, lr=0.03, weight_decay=0.2, rule=rule, ns_dtype=torch.float64, **ours)
    twins = [directions.Muon(stacked=stacked, **its) for _ in shapes]
    expected = [p.detach().clone() for p in params]
    initial = [w.clone() for w in expected]
    for number in range(12):
        lr = 0.03 * (1 - number / 12)
        optimizer.param_groups[0]["lr"] = lr
        for i, g in enumerate(step(optimizer, number)):
            expected[i] = rules.step(
                twins[i], rule, expected[i], g, lr=lr, weight_decay=0.2, peak_lr=0.03, initial=initial[i]
            )
    for p, w in zip(params, expected, strict=True):
        assert float((p.detach() - w).norm() / w.norm()) < 1e-12


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (3, 30, 50), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_singular_values_come_near_one_and_the_singular_vectors_stay(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalised(matrices, dtype=dtype).float()
    values = torch.linalg.svdvals(result)
    big = torch.linalg.svdvals(matrices) > 0.1 * torch.linalg.matrix_norm(matrices, 2).unsqueeze(-1)
    assert float(values[big].min()) > 0.6
    assert float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert float((u.mT @ result @ v.mT).diagonal(dim1=-2, dim2=-1)[big].min()) > 0.6


@pytest.mark.parametrize("smallest", [0.3, 0.05, 0.002])
def test_polar_express_ends_nearer_to_orthogonal_than_newton_schulz(smallest: float) -> None:
    """Singular values of a matrix from `smallest` to 1."""
    u, _ = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    matrix = u @ torch.diag(torch.logspace(math.log10(smallest), 0, 24, dtype=torch.float64))
    found = {
        method: torch.linalg.svdvals(orthogonalised(matrix, dtype=torch.float64, method=method))
        for method in ("polar_express", "newton_schulz")
    }
    worst = {method: float((values - 1).abs().max()) for method, values in found.items()}
    assert worst["polar_express"] < worst["newton_schulz"]
    assert worst["polar_express"] < 0.2


def test_neurons_come_to_one_size_and_the_whole_keeps_an_orthogonal_matrixs() -> None:
    """A neuron whose gradient is a hundredth of the others' is moved as far as they are."""
    for shape, axis in (((40, 10), -1), ((10, 40), -2)):
        p = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([p], lr=1.0, weight_decay=0.0, adjust_lr_fn="original", neuron_beta2=0.9)
        small = torch.ones(40).where(torch.arange(40) > 3, 0.01).reshape((-1, 1) if axis == -1 else (1, -1))
        for number in range(30):
            before = p.detach().clone()
            p.grad = small * torch.randn(shape, generator=torch.Generator().manual_seed(number))
            optimizer.step()
        moved = p.detach() - before
        sizes = torch.linalg.vector_norm(moved, dim=axis)
        assert float(sizes.min() / sizes.max()) > 0.2
        assert float(moved.norm()) == pytest.approx(math.sqrt(10 * max(1.0, shape[0] / shape[1])), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stacked", [1, 3])
def test_state_of_every_shape_is_saved_by_name_and_goes_on_bit_for_bit(stacked: int, dtype: torch.dtype) -> None:
    shapes = ((6, 9), (9, 6), (6, 6), (2, 6, 9), (1, 9, 2), (3, 1))

    def made() -> tuple[list[nn.Parameter], Muon]:
        params = parameters(shapes, dtype)
        group = {"params": [(f"w{i}", p) for i, p in enumerate(params)], "stacked": stacked}
        return params, Muon([group], lr=0.02, weight_decay=0.0, **NANOCHAT)

    through, optimizer = made()
    for number in range(3):
        step(optimizer, number)
    saved, settings = state_by_name(optimizer), settings_by_name(optimizer)
    assert saved["w0/second_momentum_buffer"].shape == ((1, 9) if stacked == 1 else (3, 1, 9))
    resumed, again = made()
    load_state_by_name(again, copy.deepcopy(saved), settings)
    with torch.no_grad():
        for p, q in zip(resumed, through, strict=True):
            p.copy_(q)
    for number in range(3, 6):
        step(optimizer, number)
        step(again, number)
    assert all(torch.equal(p, q) for p, q in zip(through, resumed, strict=True))
    for name in ("w1", "w4"):
        key = f"{name}/second_momentum_buffer"
        with pytest.raises(OptimizerError, match=f"{key}: saved with shape"):
            load_state_by_name(made()[1], saved | {key: saved[key][..., :1, :1]}, settings)


def test_each_expert_of_a_stack_is_a_matrix_of_its_own() -> None:
    stack = torch.randn(4, 6, 9, dtype=torch.float64)
    together = orthogonalised(stack, dtype=torch.float64)
    apart = torch.stack([orthogonalised(matrix, dtype=torch.float64) for matrix in stack])
    assert torch.allclose(together, apart, rtol=1e-12, atol=1e-12)


def test_moonlights_scale_gives_the_update_adamws_usual_size() -> None:
    """0.2·√max(rows, columns) times an orthogonal matrix has RMS about 0.2 (arXiv:2502.16982, lemma 1)."""
    for shape in ((64, 256), (256, 64)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        Muon([p], lr=1.0, weight_decay=0.0).step()
        assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_the_rest_goes_to_adamw_bit_for_bit() -> None:
    matrix, vector, lone = parameters(((4, 5), (5,), ()))
    optimizer = Muon([matrix, vector, lone], lr=0.01, weight_decay=0.1, adamw_betas=(0.8, 0.9), adamw_eps=1e-6)
    assert [group["algorithm"] for group in optimizer.param_groups] == ["muon", "adamw"]
    _, other, scalar = parameters(((4, 5), (5,), ()))
    reference = AdamW([other, scalar], lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    for number in range(3):
        step(optimizer, number)
        for p, q in ((other, vector), (scalar, lone)):
            assert q.grad is not None
            p.grad = q.grad.clone()
        reference.step()
    assert torch.equal(vector, other)
    assert torch.equal(lone, scalar)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(self.hidden(self.embed(tokens))))
        return logits


def test_a_plan_sends_embeddings_and_heads_to_adamw_whatever_decays() -> None:
    net = Tiny()
    net.lm_head.weight = net.embed.weight
    plan = weightdecay.plan(net, weight_decay=0.1)
    where = {
        name: (group["algorithm"], group["weight_decay"], group["name"])
        for group in Muon(plan, lr=0.01).param_groups
        for name in group["param_names"]
    }
    assert where == {
        "embed.weight": ("adamw", 0.1, "decay adamw"),
        "hidden.weight": ("muon", 0.1, "decay muon"),
        "hidden.bias": ("adamw", 0.0, "no_decay"),
        "norm.weight": ("adamw", 0.0, "no_decay"),
        "norm.bias": ("adamw", 0.0, "no_decay"),
    }


def test_a_group_goes_where_it_says_and_old_checkpoints_of_torch_load() -> None:
    embedding, hidden = parameters(((4, 5), (5, 6)))
    optimizer = Muon([{"params": [embedding], "algorithm": "adamw"}, {"params": [hidden]}])
    step(optimizer, 0)
    assert "exp_avg" in optimizer.state[embedding]
    assert "momentum_buffer" in optimizer.state[hidden]

    theirs, ours = parameters(((5, 6),), torch.float32), parameters(((5, 6),), torch.float32)
    old = torch.optim.Muon(theirs, lr=0.01)
    step(old, 0)
    new = Muon(ours, lr=0.5)
    new.load_state_dict(copy.deepcopy(old.state_dict()))  # torch shares what it loads
    with torch.no_grad():
        ours[0].copy_(theirs[0])
    step(old, 1)
    step(new, 1)
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize(("adjust", "scale"), [("original", math.sqrt(4 / 3)), ("match_rms_adamw", 0.2 * math.sqrt(4))])
def test_the_scale_is_by_the_matrix_not_by_the_stack(adjust: str, scale: float) -> None:
    p = nn.Parameter(torch.zeros(100, 4, 3, dtype=torch.float64))
    p.grad = torch.randn(100, 4, 3, dtype=torch.float64)
    Muon([p], lr=1.0, weight_decay=0.0, adjust_lr_fn=adjust, ns_dtype=torch.float64).step()
    norms = torch.linalg.matrix_norm(p.detach(), 2)
    assert 0.6 * scale < float(norms.max()) < 1.3 * scale


def test_clipping_folded_into_the_fused_step_reaches_the_matrices_too() -> None:
    ours, theirs = (parameters(((6, 5), (5,)), torch.float32) for _ in range(2))
    folded, scaled = Muon(ours, lr=0.01, fused=True), Muon(theirs, lr=0.01)
    for number in range(3):
        for params, optimizer in ((ours, folded), (theirs, scaled)):
            for p in params:
                p.grad = 10.0**number * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
            clipped_step(optimizer, 1.0)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
    momentum = folded.state[ours[0]]["momentum_buffer"]
    assert torch.allclose(momentum, scaled.state[theirs[0]]["momentum_buffer"], rtol=1e-6, atol=1e-7)


def test_a_grad_scaler_that_found_infinities_leaves_matrices_and_the_rest_unchanged() -> None:
    params = parameters(((6, 5), (5,)), torch.float32)
    before = [p.detach().clone() for p in params]
    optimizer: Any = Muon(params, lr=0.01, fused=True)
    for p in params:
        p.grad = torch.full_like(p, torch.inf)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert not optimizer.state


@pytest.mark.parametrize("agree", [True, False])
def test_cautious_equals_decoupled_where_all_signs_agree_and_no_decay_where_none_do(agree: bool) -> None:
    """A matrix of one row keeps its signs when it is made orthogonal."""
    cautious, other = (
        nn.Parameter(10 + torch.rand(1, 9, generator=torch.Generator().manual_seed(1))) for _ in range(2)
    )
    rules: list[tuple[Any, Any]] = [(cautious, "cautious"), (other, "decoupled")]
    for p, rule in rules:
        optimizer = Muon([p], lr=0.01, weight_decay=0.5 if rule == "cautious" or agree else 0.0, rule=rule)
        for number in range(5):
            p.grad = torch.rand(1, 9, generator=torch.Generator().manual_seed(number)) * (1 if agree else -1)
            optimizer.step()
    assert torch.equal(cautious, other)
