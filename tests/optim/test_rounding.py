"""Decay in bfloat16: what is lost, and three ways to keep it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import weightdecay
from tests.covering import covering
from weightdecay.errors import OptimizerError
from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamW
from weightdecay.optim.lion import Lion
from weightdecay.optim.muon import Muon
from weightdecay.optim.noise import noise_, noise_keys
from weightdecay.optim.pieces import PIECE, MasterWarning
from weightdecay.optim.precision import PrecisionWarning, realised_decay
from weightdecay.optim.roundings import KAHAN, MASTER, ROUNDINGS, STOCHASTIC, Rounding, fresh
from weightdecay.optim.sgdw import SGDW

ELEMENTS = 20_000
KEEPING = ["stochastic", "kahan", "master"]


def run_noise(
    rounding: str, weight_decay: float, dtype: torch.dtype, steps: int, lr: float = 3e-4, cls: Any = AdamW, **extra: Any
) -> Tensor:
    """Weights of standard deviation 1 after steps of pure noise; the same noise for every setting."""
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(ELEMENTS // 8, 8, generator=generator).to(dtype))
    optimizer = cls([p], lr=lr, weight_decay=weight_decay, rounding=rounding, **extra)
    for _ in range(steps):
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.step()
    return p.detach().double()


def norm_ratio(rounding: str, dtype: torch.dtype, steps: int, **extra: Any) -> float:
    decayed = run_noise(rounding, 1.0, dtype, steps, **extra)
    plain = run_noise(rounding, 0.0, dtype, steps, **extra)
    return float(decayed.norm() / plain.norm())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
@pytest.mark.parametrize(
    ("rounding", "dtype", "extra", "expected"),
    [
        ("nearest", torch.float32, {}, 0.550),
        ("stochastic", torch.bfloat16, {}, 0.550),
        ("kahan", torch.bfloat16, {}, 0.550),
        ("master", torch.bfloat16, {}, 0.550),
        ("nearest", torch.bfloat16, {}, 1.000),
        ("nearest", torch.bfloat16, {"foreach": True}, 1.000),
        ("nearest", torch.bfloat16, {"fused": True}, 0.998),
    ],
)
def test_the_norm_ratio_of_lambda_one_to_zero_over_2000_noise_steps(
    rounding: str, dtype: torch.dtype, extra: dict[str, Any], expected: float
) -> None:
    assert norm_ratio(rounding, dtype, 2_000, **extra) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("name", "rounding"), covering(["AdamW", "Lion", "SGDW", "Muon", "Adafactor"], list(KEEPING)))
def test_every_optimizer_keeps_in_bfloat16_the_decay_of_float32(name: str, rounding: str) -> None:
    """300 steps at a = 3e-4, which rounding to nearest would undo; e^−0.09 = 0.914 is left without gradients."""
    cls: Any = getattr(weightdecay, name)
    reference = norm_ratio("nearest", torch.float32, 300, cls=cls)
    assert reference < 0.95
    assert norm_ratio(rounding, torch.bfloat16, 300, cls=cls) == pytest.approx(reference, abs=0.004)


@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
def test_rounding_to_nearest_undoes_the_decay() -> None:
    assert norm_ratio("nearest", torch.bfloat16, 300) == pytest.approx(1.0, abs=0.002)


@pytest.mark.parametrize("rule", ["decoupled", "independent", "fixed", "cautious", "towards_one", "towards_initial"])
@pytest.mark.parametrize("settings", [{}, {"amsgrad": True, "maximize": True}])
def test_master_weights_step_as_float32_steps(rule: str, settings: dict[str, Any]) -> None:
    low, high = nn.Parameter(torch.randn(70, 9).bfloat16()), None
    high = nn.Parameter(low.detach().float())
    kwargs: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.05, "rule": rule, "fused": True, **settings}
    mine, reference = AdamW([low], rounding="master", **kwargs), AdamW([high], **kwargs)
    for _ in range(5):
        low.grad = torch.randn(70, 9).bfloat16()
        high.grad = low.grad.float()
        mine.step()
        reference.step()
    assert torch.allclose(mine.state[low]["master"], high, rtol=1e-6, atol=1e-8)
    assert torch.equal(low, mine.state[low]["master"].bfloat16())
    if rule == "decoupled":
        assert torch.equal(mine.state[low]["master"], high)


@pytest.mark.parametrize("rounding", KEEPING)
def test_a_tensor_of_several_pieces_and_a_strided_one_step_whole(rounding: str) -> None:
    size = 2 * PIECE + 77
    weights = torch.randn(size // 7, 7).bfloat16()
    strided, plain = nn.Parameter(weights.clone().T), nn.Parameter(weights.clone())
    assert not strided.is_contiguous()
    for p in (strided, plain):
        p.grad = torch.ones_like(p)
        AdamW([p], lr=0.1, weight_decay=0.5, rounding=rounding).step()  # type: ignore[arg-type]
    exact = weights.double() * 0.95 - 0.1
    for result in (strided.detach().T.double(), plain.detach().double()):
        assert float((result - exact).abs().max()) <= float(exact.abs().max()) * 2**-7
        assert not torch.equal(result, weights.double())


@pytest.mark.parametrize("rounding", KEEPING)
@pytest.mark.parametrize(
    "make",
    [
        lambda p, **kw: AdamW(p, fused=True, **kw),
        lambda p, **kw: SGDW(p, momentum=0.9, **kw),
        Lion,
        Muon,
        Adafactor,
        lambda p, **kw: Adafactor(p, factored=False, beta1=0.9, **kw),
    ],
    ids=["AdamW", "SGDW", "Lion", "Muon", "Adafactor", "Adafactor as PaLM's"],
)
def test_a_transposed_tensor_and_its_state_step_like_a_plain_one(make: Any, rounding: str) -> None:
    weights = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    strided, plain = (
        nn.Parameter(weights.clone().T),
        nn.Parameter(weights.T.clone(memory_format=torch.contiguous_format)),
    )
    for p in (strided, plain):
        optimizer = make([p], lr=0.01, weight_decay=0.1, rounding=rounding)
        for step in range(4):
            gradient = torch.randn(6, 9, generator=torch.Generator().manual_seed(step))
            p.grad = torch.empty_like(p).copy_(gradient)
            optimizer.step()
            for key, value in optimizer.state[p].items():  # as a checkpoint of a transposed tensor holds it
                if step == 1 and p is strided and value.ndim == 2:
                    optimizer.state[p][key] = value.T.contiguous().T
    assert torch.equal(strided, plain)


@settings(max_examples=30)
@given(value=st.floats(-(2.0**40), 2.0**40, width=32))
def test_stochastic_rounding_goes_to_a_neighbour_and_is_right_on_average(value: float) -> None:
    wide = torch.full((1 << 16,), value)
    noise = torch.arange(1 << 16, dtype=torch.int32)  # every possible noise once: the mean is exact, not sampled
    low = torch.empty(1 << 16, dtype=torch.bfloat16)
    STOCHASTIC.write(wide.clone(), low, {}, fresh, noise)
    assert len(set(low.tolist())) <= 2
    if abs(value) > 2.0**-110:
        assert float(low.double().mean()) == pytest.approx(value, rel=2**-40)
    assert float((low.double() - value).abs().max()) <= abs(value) * 2**-7 + 2.0**-132


def test_stochastic_rounding_keeps_infinities_and_every_nan() -> None:
    """CUDA's own NaN is 0x7fffffff: with noise on its low bits it would be carried into −0."""
    patterns = [0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1, -0x7FFFFF, -0x400000]  # NaNs of both signs
    wide = torch.cat(
        [torch.tensor(patterns, dtype=torch.int32).view(torch.float32), torch.tensor([torch.inf, -torch.inf])]
    )
    for noise in (0, 1, 9, 0xFFFF):
        low = torch.empty(8, dtype=torch.bfloat16)
        STOCHASTIC.write(wide.clone(), low, {}, fresh, torch.full((8,), noise, dtype=torch.int32))
        assert bool(low[:6].isnan().all())
        assert low[6:].tolist() == [torch.inf, -torch.inf]


@pytest.mark.parametrize("rounding", KEEPING)
@pytest.mark.parametrize("name", ["AdamW", "AdamL2", "Lion", "SGDW", "Muon", "Adafactor"])
@pytest.mark.parametrize("from_the_start", [True, False])
@pytest.mark.filterwarnings("ignore::weightdecay.optim.pieces.MasterWarning")
def test_infinite_weights_and_nan_step_as_in_float32(name: str, rounding: str, from_the_start: bool) -> None:
    """And leave others alone, those that step together with them, too: inf − inf is NaN in Kahan's sum."""
    cls = getattr(weightdecay, name)
    low = [nn.Parameter(torch.ones(8, 8).bfloat16()) for _ in range(3)]
    high = [nn.Parameter(torch.ones(8, 8)) for _ in range(3)]
    optimizers = cls(low, lr=0.01, weight_decay=0.1, rounding=rounding), cls(high, lr=0.01, weight_decay=0.1)
    for step in range(4):
        if step == (0 if from_the_start else 2):
            for p in (low[1], high[1]):
                p.data[0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
        for p in low + high:
            p.grad = torch.full_like(p, 0.125)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(low, high, strict=True):
        torch.testing.assert_close(p.float(), q.detach(), rtol=0.02, atol=0.0, equal_nan=True)


def test_a_weight_that_grows_beyond_bfloat16_is_infinite_and_stays_it() -> None:
    for rounding in KEEPING:
        p = nn.Parameter(torch.full((3,), 3.3895e38).bfloat16())
        optimizer = SGDW([p], lr=1.0, rounding=rounding)  # type: ignore[arg-type]
        for _ in range(3):
            p.grad = torch.full_like(p, -1e36)
            optimizer.step()
        assert p.tolist() == [torch.inf] * 3, rounding


def noise(stream: int, step: int, *place: int) -> Tensor:
    keys = noise_keys([stream], [step], *place)[0]
    return noise_(torch.arange(ELEMENTS, dtype=torch.int32), keys.unbind())


def test_the_noise_is_a_function_of_stream_step_part_and_element() -> None:
    seen = [noise(*place).double() for place in itertools.product((0, 1, 1 << 62), (0, 1), (0, 3))]
    seen += [noise(0, 0, 0, begin).double() for begin in (ELEMENTS, 1 << 31)] + [seen[0].roll(1)]
    correlations = torch.corrcoef(torch.stack(seen)).fill_diagonal_(0.0)
    assert float(correlations.abs().max()) < 5 / ELEMENTS**0.5
    assert torch.equal(noise(2, 1, 3), noise(2, 1, 3))
    places = torch.arange(ELEMENTS, dtype=torch.int32)
    for key in range(3):
        changed = noise_keys([0], [0])[0]
        changed[key] += 1
        assert not torch.equal(noise_(places.clone(), changed.unbind()), seen[0].int())


NOISY = pytest.mark.parametrize(
    "make",
    [
        lambda p, **kw: AdamW(p, compiled=False, **kw),
        pytest.param(lambda p, **kw: AdamW(p, compiled=True, **kw), marks=pytest.mark.long),
        Lion,
        SGDW,
        Muon,
        Adafactor,
    ],
    ids=["AdamW", "compiled", "Lion", "SGDW", "Muon", "Adafactor"],
)


def halves_of_a_step(groups: list[Any], make: Any, gradients: list[float]) -> list[Tensor]:
    """Where each optimizer of one group left a tensor of ones unmoved by a decay of half a place: a fair coin each."""
    stayed = []
    for group, gradient in zip(groups, gradients, strict=True):
        optimizer = make(group, lr=2.0**-9, weight_decay=1.0, rounding="stochastic")
        (p,) = (p for held in optimizer.param_groups for p in held["params"])
        for slope in (gradient, 0.0):  # the second step decides: the first one's update is of any size
            p.data.fill_(1.0)
            p.grad = torch.full_like(p, slope)
            for kept in optimizer.state[p].values():
                if kept.ndim:
                    kept.zero_()
            optimizer.step()
        stayed.append(p.detach().flatten() == 1.0)
    return stayed


def tensors_of_ones(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(64, 64).bfloat16()) for _ in range(count)]


def agreement(one: Tensor, other: Tensor) -> float:
    return float((one == other).double().mean())


@NOISY
def test_tensors_of_optimizers_of_their_own_round_by_noise_of_their_own(make: Any) -> None:
    """As a step within the backward has them: each is the first of its optimizer, and only what it meets is its own."""
    one, other, again = halves_of_a_step([[p] for p in tensors_of_ones(3)], make, [1e-3, -1e-3, 1e-3])
    assert 0.45 < float(one.double().mean()) < 0.55
    assert 0.45 < agreement(one, other) < 0.55
    assert torch.equal(one, again)  # nothing is drawn: a run that is made once more is the same


def test_tensors_alike_round_by_noise_of_their_own_where_they_have_names_or_places() -> None:
    named = [[(name, p)] for name, p in zip("ab", tensors_of_ones(2), strict=True)]
    assert 0.45 < agreement(*halves_of_a_step(named, SGDW, [0.0, 0.0])) < 0.55

    for split in (1, 3):
        params = tensors_of_ones(3)
        optimizer = SGDW(
            [{"params": params[:split]}, *([{"params": params[split:]}] if split < 3 else [])],
            lr=2.0**-9, weight_decay=1.0, rounding="stochastic",
        )  # fmt: skip
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        stayed = [p.detach() == 1.0 for p in params]
        for one, other in itertools.combinations(stayed, 2):
            assert 0.45 < agreement(one, other) < 0.55


def test_the_noise_is_uniform_in_every_bit() -> None:
    drawn = torch.stack([noise(tensor, step) for step in range(30) for tensor in range(5)])
    assert 0 <= int(drawn.min()) <= 10
    assert 65_525 <= int(drawn.max()) <= 65_535
    bits = drawn.flatten()[:, None] >> torch.arange(16) & 1
    deviations = (bits.double().mean(0) - 0.5) * 2 * len(bits) ** 0.5  # standard deviations
    assert float(deviations.abs().max()) < 4.5
    squared = (torch.bincount(drawn.flatten() >> 4, minlength=4_096) - len(bits) / 4_096).square()
    chi_squared = float(squared.sum() / (len(bits) / 4_096))
    assert abs(chi_squared - 4_095) < 4.5 * (2 * 4_095) ** 0.5


@pytest.mark.parametrize(
    ("decay", "low", "high"), [(2.0**-9, 0.0, 0.0), (3e-5, 0.0, 0.0), (2.0**-8 * 1.01, 0.5, 2.0), (0.05, 0.97, 1.03)]
)
def test_bfloat16_decays_nothing_below_two_to_the_minus_nine_and_all_above_minus_eight(
    decay: float, low: float, high: float
) -> None:
    assert low <= realised_decay(torch.randn(100_000).bfloat16(), decay) <= high


@pytest.mark.parametrize(
    ("decay", "expected"), [(1e-6, 1.015), (1e-7, 1.14), (3.1e-8, 2.78), (2.9e-8, 0.0), (1e-3, 1.0)]
)
def test_float32_has_its_own_floor_and_decays_too_much_just_above_it(decay: float, expected: float) -> None:
    assert realised_decay(torch.randn(300_000), decay) == pytest.approx(expected, rel=0.03)


PATHS = pytest.mark.parametrize("path", [{}, {"fused": True}], ids=["for-loop", "fused"])


def stepped(start: Tensor, decay: float, path: dict[str, bool]) -> Tensor:
    """What one step without gradient leaves of the weights."""
    p = nn.Parameter(start.clone())
    p.grad = torch.zeros_like(p)
    AdamW([p], lr=decay, weight_decay=1.0, **path).step()  # type: ignore[arg-type]
    return p.detach()


@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
@PATHS
@pytest.mark.parametrize(
    ("dtype", "decay"),
    [(torch.bfloat16, 0.0022), (torch.bfloat16, 0.003), (torch.bfloat16, 0.01), (torch.float32, 1e-3),
     (torch.float32, 1e-6), (torch.float32, 1e-7), (torch.float32, 3.1e-8), (torch.float32, 2.9e-8)],
)  # fmt: skip
def test_the_realised_decay_is_what_a_step_then_does(path: dict[str, bool], dtype: torch.dtype, decay: float) -> None:
    start = torch.randn(50_000).to(dtype)
    exact = start.double()
    done = float((exact * (exact - stepped(start, decay, path).double())).sum() / (decay * exact.square().sum()))
    assert realised_decay(start, decay) == pytest.approx(done, rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
@PATHS
def test_which_of_bfloat16s_weights_move_is_decided_by_their_mantissas(path: dict[str, bool]) -> None:
    """All 128 mantissas, both signs, three exponents: none at 2⁻⁹, all above 2⁻⁸, and between them a rising share."""
    mantissas = 1 + torch.arange(128.0) / 128
    weights = torch.cat([sign * 2.0**e * mantissas for e in (-7, 0, 5) for sign in (1, -1)]).bfloat16()
    shares = [
        float((stepped(weights, decay, path) != weights).double().mean())
        for decay in (2.0**-9, 2.0**-9 * 1.2, 2.0**-9 * 1.5, 2.0**-9 * 1.8, 2.0**-8 * 1.001)
    ]
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert all(0.0 < early < late < 1.0 for early, late in itertools.pairwise(shares[1:-1]))


@pytest.mark.filterwarnings("ignore::weightdecay.optim.precision.PrecisionWarning")
def test_on_a_processor_torchs_foreach_path_rounds_the_factor_itself() -> None:
    """Nothing moves up to 2⁻⁹, everything by a whole neighbour above it."""
    weights = (1 + torch.arange(128.0) / 128).bfloat16()
    assert torch.equal(stepped(weights, 2.0**-9, {"foreach": True}), weights)
    assert bool((stepped(weights, 2.0**-9 * 1.1, {"foreach": True}) != weights).all())


@given(exponent=st.floats(-7, -0.31), seed=st.integers(0, 99))
def test_float32_realises_the_decay_within_its_own_rounding(exponent: float, seed: int) -> None:
    decay = 10.0**exponent
    weights = torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
    assert realised_decay(weights, decay) == pytest.approx(1.0, abs=max(0.01, 2.0**-24 / decay))


@pytest.mark.long
@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_a_decay_outside_the_rounding_is_lost_as_it_was_in_known_libraries(rounding: str) -> None:
    """`param.mul_` in bfloat16 before a step that rounds its update alone."""

    def norm(decay: float) -> float:
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(ELEMENTS, generator=generator).bfloat16())
        optimizer = AdamW([p], lr=3e-4, weight_decay=0.0, rounding=rounding)  # type: ignore[arg-type]
        for _ in range(2_000):
            p.grad = torch.randn(p.shape, generator=generator).bfloat16()
            with torch.no_grad():
                p.mul_(1 - decay)
            optimizer.step()
        return float(p.detach().double().norm())

    assert norm(3e-4) / norm(0.0) == pytest.approx(1.0, abs=0.005)


def test_a_model_that_would_not_decay_is_warned_of_before_training() -> None:
    net = nn.Linear(64, 64).bfloat16()
    with pytest.warns(PrecisionWarning, match=r"2 tensors in bfloat16 will get 0\.0% of the decay per step of 3e-05"):
        AdamW(net.parameters(), lr=3e-4, weight_decay=0.1)


@pytest.mark.parametrize("rounding", KEEPING)
def test_no_warning_where_the_decay_is_kept_or_there_is_none(rounding: str) -> None:
    net = nn.Linear(64, 64).bfloat16()
    AdamW(net.parameters(), lr=3e-4, weight_decay=0.1, rounding=rounding)  # type: ignore[arg-type]
    AdamW(net.parameters(), lr=3e-4, weight_decay=0.0)
    AdamW(nn.Linear(64, 64).parameters(), lr=3e-4, weight_decay=0.1)


@pytest.mark.parametrize("rounding", ["kahan", "master"])
def test_float16_weights_keep_their_decay_too(rounding: str) -> None:
    reference = norm_ratio("nearest", torch.float32, 300)
    assert norm_ratio(rounding, torch.float16, 300) == pytest.approx(reference, abs=0.004)


def test_stochastic_rounding_refuses_float16_before_anything_moves() -> None:
    p = nn.Parameter(torch.ones(4, dtype=torch.float16))
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p], rounding="stochastic")
    with pytest.raises(OptimizerError, match=r"made for bfloat16, not for float16.*kahan, master"):
        optimizer.step()
    assert torch.equal(p, torch.ones(4, dtype=torch.float16))


def test_float32_tensors_among_low_ones_step_as_usual() -> None:
    low, full = nn.Parameter(torch.ones(8).bfloat16()), nn.Parameter(torch.ones(8))
    reference = nn.Parameter(torch.ones(8))
    mine = AdamW([low, full], lr=0.01, weight_decay=0.1, rounding="master")
    theirs = torch.optim.AdamW([reference], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        for p in (low, full, reference):
            p.grad = torch.full_like(p, 0.5)
        mine.step()
        theirs.step()
    assert torch.equal(full, reference)
    assert torch.equal(low, full.bfloat16())
    assert "master" not in mine.state[full]


def test_the_warning_shows_the_users_line() -> None:
    net = nn.Linear(64, 64).bfloat16()
    settings: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.1}
    later = AdamW([nn.Parameter(torch.ones(2))], **settings)
    each: list[Callable[[], Any]] = [
        lambda: AdamW(net.parameters(), **settings),
        lambda: Muon(weightdecay.plan(net, weight_decay=0.1), lr=3e-4),
        lambda: weightdecay.control(torch.optim.AdamW(net.parameters(), **settings)),
        lambda: later.add_param_group({"params": net.parameters()}),
    ]
    for make in each:
        with pytest.warns(PrecisionWarning) as caught:
            make()
        assert [warning.filename for warning in caught] == [__file__]


# --- weights that somebody else changes


ROUNDED: dict[str, Any] = {
    "AdamW": lambda p, rounding: AdamW(p, lr=1e-3, rounding=rounding),
    "AdamW compiled": lambda p, rounding: AdamW(p, lr=1e-3, rounding=rounding, compiled=True),
    "SGDW": lambda p, rounding: SGDW(p, lr=1e-3, momentum=0.9, rounding=rounding),
    "Lion": lambda p, rounding: Lion(p, lr=1e-4, rounding=rounding),
    "Muon": lambda p, rounding: Muon(p, lr=1e-3, rounding=rounding),
    "Adafactor": lambda p, rounding: Adafactor(p, lr=1e-3, rounding=rounding, relative_step=False,
                                               scale_parameter=False),
}  # fmt: skip
KEPT = [(rounding, dtype) for dtype in (torch.bfloat16, torch.float16) for rounding in ("master", "kahan")]


@pytest.mark.parametrize(("name", "kept_in", "size"), covering(list(ROUNDED), KEPT, [5, 700, 300_000]))
def test_weights_that_were_loaded_behind_a_roundings_back_hold_and_that_is_said(
    name: str, kept_in: tuple[Any, torch.dtype], size: int
) -> None:
    make, (rounding, dtype) = ROUNDED[name], kept_in
    # All first steps leave something of weights as large as these: they are not at numbers that bfloat16 has.
    first, other = (nn.Parameter(torch.full((size // 5, 5), 3.0).to(dtype)) for _ in range(2))
    optimizer = make([first, other], rounding)

    def step(gradient: float) -> None:
        for p in (first, other):
            p.grad = torch.full_like(p, gradient)
        optimizer.step()

    step(1e-3)
    untouched = other.detach().clone()
    (kept,) = ROUNDINGS[rounding].memory(dtype)
    lost = optimizer.state[first][kept].float() - (first.detach().float() if rounding == "master" else 0)
    assert bool(lost.all())

    first.data.zero_()
    for state in optimizer.state.values():
        state |= {key: torch.zeros_like(value) for key, value in state.items() if key in ("exp_avg", "momentum_buffer")}
    with pytest.warns(MasterWarning, match=f"their {kept} is taken anew"):
        step(0.0)
    assert not bool(first.any())
    assert not bool(optimizer.state[first][kept].any())
    assert float((other.detach().float() - untouched.float()).abs().max()) < 0.05
    step(0.0)  # and said once
    assert not bool(first.any())


@pytest.mark.parametrize("rounding", [KAHAN, MASTER], ids=lambda rounding: rounding.name)
def test_weights_that_are_no_numbers_and_zeros_of_either_sign_are_not_taken_for_changed(rounding: Rounding) -> None:
    low = torch.tensor([math.nan, -0.0, math.inf, 1.0]).bfloat16()
    low.view(torch.int16)[0] = 0x7FC1  # a NaN that arithmetic does not make
    assert not rounding.is_disturbed(low, rounding.begin(low), fresh)


@given(
    weights=st.lists(st.floats(-3e4, 3e4, width=32), min_size=1, max_size=20),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    scale=st.sampled_from([1.0, 1e-2, 1e-6]),
)
@example([1 + 2**-7 + 2**-8 - 2**-23], torch.bfloat16, 1.0)  # what was lost is rounded to half of the way itself
def test_what_kahans_sum_has_lost_is_never_taken_for_somebody_elses_change(
    weights: list[float], dtype: torch.dtype, scale: float
) -> None:
    wide = torch.tensor(weights) * scale
    low = torch.empty(len(weights), dtype=dtype)
    state = KAHAN.begin(low)
    KAHAN.write(wide.clone(), low, state, fresh, None)
    assert not KAHAN.is_disturbed(low, state, fresh)
    kept = state["compensation"].clone()
    KAHAN.renew_(low, state)
    assert torch.equal(state["compensation"], kept)


def test_one_weight_that_was_pruned_holds_and_its_neighbours_keep_their_masters() -> None:
    p = nn.Parameter(torch.randn(1_000).bfloat16())
    optimizer = AdamW([p], lr=1e-4, weight_decay=0.0, rounding="master")
    for _ in range(5):
        p.grad = torch.randn_like(p)
        optimizer.step()
    before = optimizer.state[p]["master"].clone()
    p.data[17] = 0.0
    p.grad = torch.zeros_like(p)
    for key in ("exp_avg", "exp_avg_sq"):
        optimizer.state[p][key].zero_()
    with pytest.warns(MasterWarning):
        optimizer.step()
    before[17] = 0.0
    assert torch.equal(optimizer.state[p]["master"], before)


# --- Adafactor, whose own arithmetic looks at the weights


@pytest.mark.parametrize("rounding", KEEPING)
@pytest.mark.parametrize(
    "form", [{}, {"factored": False, "beta1": 0.9, "relative_step": False}], ids=["torch's", "PaLM's"]
)
def test_adafactor_moves_low_precision_weights_as_far_as_float32_ones(rounding: str, form: dict[str, Any]) -> None:
    """Its ε is that of the precision in which the step is made: gradients of 1e-4 lie far below bfloat16's 2⁻⁷."""

    def moved(dtype: torch.dtype, **given: Any) -> float:
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(64, 64, generator=generator).bfloat16().to(dtype))
        start = p.detach().double()
        optimizer = Adafactor([p], lr=1e-2, **form, **given)
        for _ in range(20):
            p.grad = (1e-4 * torch.randn(64, 64, generator=generator)).to(dtype)
            optimizer.step()
        return float((p.detach().double() - start).norm())

    assert moved(torch.bfloat16, rounding=rounding) == pytest.approx(moved(torch.float32), rel=0.08)


# --- many small tensors


@pytest.mark.parametrize("rounding", KEEPING)
@pytest.mark.parametrize(
    "make",
    [lambda p, **kw: AdamW(p, fused=True, **kw), Lion, lambda p, **kw: SGDW(p, momentum=0.9, **kw)],
    ids=["AdamW", "Lion", "SGDW"],
)
def test_tensors_that_step_together_end_where_each_would_end_alone(make: Any, rounding: str) -> None:
    """Bit for bit, the noise too: it is a function of the element, not of what it is stepped with."""
    shapes = [(3,), (4, 5), (), (70_000,), (0,), (2, 3, 4), (33, 31)]
    start = [
        torch.randn(shape, generator=torch.Generator().manual_seed(i)).bfloat16() for i, shape in enumerate(shapes)
    ]
    together = [nn.Parameter(w.clone()) for w in start]
    optimizer = make(together, lr=0.01, weight_decay=0.1, rounding=rounding)
    alone = [nn.Parameter(w.clone()) for w in start]
    others = make(alone, lr=0.01, weight_decay=0.1, rounding=rounding)
    for step in range(3):
        for i, (p, q) in enumerate(zip(together, alone, strict=True)):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i)).bfloat16()
            if i == step:
                p.grad = None  # so that their counts of steps differ
            q.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        gradients = [q.grad for q in alone]
        for i, q in enumerate(alone):
            for other in alone:
                other.grad = None
            q.grad = gradients[i]
            others.step()
    for p, q in zip(together, alone, strict=True):
        assert torch.equal(p, q)
