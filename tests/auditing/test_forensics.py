"""Checkpoints of every kind, what is said of lost decay, gains and balance, and inputs that say nothing."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import weightdecay
from weightdecay.auditing.forensics.answers import Asked, IdleRows, Told, Untold
from weightdecay.auditing.forensics.apart import gamma_quantile, untouched_group
from weightdecay.auditing.forensics.balance import balanced
from weightdecay.auditing.forensics.examining import forensics
from weightdecay.auditing.forensics.idle_rows import Found, by_tokenizer
from weightdecay.auditing.forensics.initialisation import InitStd
from weightdecay.auditing.forensics.shrinking import against_spread
from weightdecay.errors import ConfigError, DamagedError, DataError, WeightDecayError

_KEPT = 0.8
_ROWS, _WIDTH, _IDLE = 120, 48, 40
State = dict[str, Tensor]


def _pair(dtype: torch.dtype = torch.float32, kept: float = _KEPT, gain: float = 1.0) -> tuple[State, State]:
    """A start, and an end in which the last rows have only decayed."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float = 0.02) -> Tensor:
        return std * torch.randn(*shape, generator=generator)

    start = {
        "model.embed_tokens.weight": normal(_ROWS, _WIDTH),
        "model.layers.0.input_layernorm.weight": torch.ones(_WIDTH),
        "model.layers.0.self_attn.q_proj.weight": normal(_WIDTH, _WIDTH),
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(_WIDTH),
        "model.layers.0.mlp.up_proj.weight": normal(2 * _WIDTH, _WIDTH),
        "model.layers.0.mlp.down_proj.weight": normal(_WIDTH, 2 * _WIDTH),
        "lm_head.weight": normal(_ROWS, _WIDTH),
    }
    start = {name: tensor.to(dtype) for name, tensor in start.items()}
    end = {name: tensor * 0.9 + 0.001 for name, tensor in start.items()}
    rows = start["model.embed_tokens.weight"].float() * kept
    rows[: _ROWS - _IDLE] += normal(_ROWS - _IDLE, _WIDTH, std=0.1)
    end["model.embed_tokens.weight"] = rows.to(dtype)
    end["model.layers.0.input_layernorm.weight"] = (gain + normal(_WIDTH, std=0.01)).to(dtype)
    return start, end


@pytest.fixture
def start() -> State:
    return _pair()[0]


@pytest.fixture
def end() -> State:
    return _pair()[1]


def _told(answer: Told | Untold) -> Told:
    assert isinstance(answer, Told), answer.why
    return answer


def _config(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False, **values}))


def _sharded(state: State, folder: Path) -> Path:
    folder.mkdir()
    _config(folder)
    names = sorted(state)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _single(state: State, folder: Path) -> Path:
    folder.mkdir()
    _config(folder)
    save_file(state, folder / "model.safetensors")
    return folder


def _file(state: State, folder: Path) -> Path:
    folder.mkdir()
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _index(state: State, folder: Path) -> Path:
    return _sharded(state, folder) / "model.safetensors.index.json"


def _torch_file(state: State, folder: Path) -> Path:
    folder.mkdir()
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def _training_file(state: State, folder: Path) -> Path:
    folder.mkdir()
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.ones(2, 2)}}}, "model": state, "step": 3}, folder / "c.pt")
    return folder / "c.pt"


def _old_torch_file(state: State, folder: Path) -> Path:
    folder.mkdir()
    torch.save(state, folder / "weights.pth", _use_new_zipfile_serialization=False)
    return folder / "weights.pth"


def _bin_directory(state: State, folder: Path) -> Path:
    folder.mkdir()
    _config(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


FORMS: list[Callable[[State, Path], Any]] = [
    _single, _sharded, _file, _index, _torch_file, _training_file, _old_torch_file, _bin_directory,
    lambda state, _: state,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_says_the_same(form: Any, start: State, end: State, tmp_path: Path) -> None:
    told = _told(forensics(form(end, tmp_path / "end"), against=form(start, tmp_path / "start")).decay_sum)
    assert told.value == pytest.approx(-math.log(_KEPT), rel=1e-5)
    assert told.low <= -math.log(_KEPT) <= told.high


def test_a_directory_says_the_initialisation_in_its_configuration(end: State, tmp_path: Path) -> None:
    folder = _single(end, tmp_path / "hf")
    assert "--init-std" in forensics(folder).decay_sum.why  # type: ignore[union-attr]
    _config(folder, initializer_range=0.02)
    told = _told(forensics(folder).decay_sum)
    assert told.low <= -math.log(_KEPT) <= told.high
    assert "initializer_range" in told.basis


def test_a_range_of_the_initialisation_widens_the_interval_by_as_much(end: State) -> None:
    one, wide = (_told(forensics(end, init_std=std).decay_sum) for std in (0.02, (0.018, 0.022)))
    assert wide.high - wide.low == pytest.approx(one.high - one.low + math.log(0.022 / 0.018))


def test_rows_beyond_the_tokenizer_are_taken_where_there_are_some(end: State, tmp_path: Path) -> None:
    folder = _single(end, tmp_path / "hf")
    vocabulary = {f"t{i}": i for i in range(_ROWS - _IDLE)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    report = forensics(folder, init_std=0.02)
    assert report.table.idle.basis == f"rows beyond the tokenizer's {_ROWS - _IDLE} ids"  # type: ignore[union-attr]
    told = _told(report.decay_sum)
    assert told.low <= -math.log(_KEPT) <= told.high


def test_rows_beyond_the_tokenizer_that_were_set_to_a_mean_are_not_taken(end: State, tmp_path: Path) -> None:
    rows = end["model.embed_tokens.weight"]
    rows[-10:] = rows[:-10].mean(0)
    folder = _single(end, tmp_path / "hf")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {f"t{i}": i for i in range(_ROWS - 10)}}}))
    assert "still look like random draws" in forensics(folder, init_std=0.02).table.idle.basis  # type: ignore[union-attr]


def test_rows_beyond_the_tokenizer_of_unlike_norms_are_not_taken(end: State) -> None:
    rows = end["model.embed_tokens.weight"].double()
    rows[-20:] *= torch.linspace(0.3, 3.0, 20)[:, None]
    answer = by_tokenizer(rows, _ROWS - 20)
    assert isinstance(answer, Untold)
    assert "no draws of one distribution" in answer.why


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_intervals_of_rows_that_are_known_hold_the_truth_in_95_of_100(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    found = Found(IdleRows(tuple(range(20)), "given", certain=True))
    inside = 0
    for _ in range(400):
        if kind == "normal":
            rows = torch.randn(20, 32, generator=generator, dtype=torch.float64)
        else:
            rows = math.sqrt(12) * (torch.rand(20, 32, generator=generator, dtype=torch.float64) - 0.5)
        told = _told(against_spread(0.02 * _KEPT * rows, found, InitStd(0.02, 0.02, "given")))
        inside += told.low <= -math.log(_KEPT) <= told.high
    assert 0.92 * 400 < inside < 0.98 * 400


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, "exempt"), (_KEPT, "decayed"), (0.9, "cannot be told")])
def test_a_gain_is_judged_by_where_decay_would_have_left_it(gain: float, verdict: str) -> None:
    start, end = _pair(gain=gain)
    end["model.layers.0.input_layernorm.weight"] = gain + 0.06 * torch.linspace(-1, 1, _WIDTH)
    by_kind = {one.kind: one for one in forensics(end, against=start).vectors}
    assert by_kind["gain"].verdict == verdict
    assert by_kind["bias"].verdict == "cannot be told"


def test_gains_that_begin_at_zero_cannot_be_told() -> None:
    start, end = _pair(gain=0.0)
    start["model.layers.0.input_layernorm.weight"].zero_()
    assert {one.verdict for one in forensics(end, against=start).vectors} == {"cannot be told"}


_ASKED = Asked(weight_decay=0.1, lr=3e-4, source="as given")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_that_are_the_starts_to_the_last_bit_have_lost_their_decay_to_a_coarse_dtype(dtype: torch.dtype) -> None:
    start, end = _pair(dtype, kept=1.0)
    report = forensics(end, against=start, asked=_ASKED)
    assert report.loss.verdict == "lost"
    assert _told(report.decay_sum) == Told(0.0, 0.0, 0.0, report.decay_sum.basis)  # type: ignore[union-attr]


def test_bfloat16_is_seen_in_a_file_of_float32() -> None:
    start, end = _pair(torch.bfloat16, kept=1.0)
    wide = [{name: tensor.float() for name, tensor in state.items()} for state in (start, end)]
    report = forensics(wide[1], against=wide[0], asked=_ASKED)
    assert report.loss.verdict == "lost"
    assert report.table.kept_in_bf16


def test_unchanged_rows_in_float32_may_have_been_exempt() -> None:
    start, end = _pair(kept=1.0)
    assert forensics(end, against=start, asked=_ASKED).loss.verdict == "cannot be told"
    tiny = Asked(weight_decay=0.01, lr=1e-6, source="as given")
    assert forensics(end, against=start, asked=tiny).loss.verdict == "lost"
    none = Asked(weight_decay=0.0, lr=1e-6, source="as given")
    assert forensics(end, against=start, asked=none).loss.verdict == "not lost"
    assert forensics(end, against=start).loss.verdict == "cannot be told"


def test_less_than_half_of_what_was_asked_for_is_lost(start: State, end: State) -> None:
    for wanted, verdict in ((0.22, "not lost"), (1.0, "lost")):
        asked = Asked(0.1, 3e-4, wanted, "as given")
        assert forensics(end, against=start, asked=asked).loss.verdict == verdict


def test_a_bfloat16_checkpoint_with_its_start_tells_the_sum() -> None:
    start, end = _pair(torch.bfloat16)
    told = _told(forensics(end, against=start).decay_sum)
    assert told.value == pytest.approx(-math.log(_KEPT), rel=0.01)
    assert told.low <= -math.log(_KEPT) <= told.high


def test_the_balance_is_told_at_equilibrium_alone() -> None:
    reached, before = Told(3.0, 2.9, 3.1, ""), Told(0.5, 0.4, 0.6, "")
    told = _told(balanced([0.1, 0.11, 0.09, 0.1], reached))
    assert told.low < 2 * 0.1**2 < told.high
    assert "not at their equilibrium" in balanced([0.1] * 4, before).why  # type: ignore[union-attr]
    assert "not one balance" in balanced([0.1, 0.3, 0.9, 0.01], reached).why  # type: ignore[union-attr]
    assert "too few" in balanced([0.1], reached).why  # type: ignore[union-attr]
    assert isinstance(balanced([0.1] * 4, Untold("")), Untold)


@settings(max_examples=3, deadline=None)
@given(scale=st.floats(1e-3, 10), seed=st.integers(0, 1000))
def test_the_group_of_draws_is_found_at_any_scale(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, 64, generator=generator, dtype=torch.float64)
    rows[100:] = 3 * rows[100:] * torch.rand(200, 1, generator=generator).add(0.7) + 2 * rows[0]
    group = untouched_group(scale * rows)
    assert not isinstance(group, str)
    assert group.low - 0.1 < 2 * math.log(scale) < group.high + 0.1
    assert 40 < group.size < 120  # over 201 seeds 46 to 100; what it says of the start held in all


def test_a_table_of_draws_alone_is_not_taken_for_rows_that_never_came() -> None:
    rows = torch.randn(300, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert "all rows look alike" in str(untouched_group(rows))


def test_rows_of_common_directions_are_not_taken_for_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(300, 8, generator=generator, dtype=torch.float64) @ torch.randn(8, 64, generator=generator).double()
    )
    rows[:30] *= 4
    assert isinstance(untouched_group(rows), str)


@pytest.mark.parametrize("shape", [0.7, 5.0, 400.0])
def test_quantiles_of_the_gamma_distribution_are_those_of_its_integral(shape: float) -> None:
    a = torch.tensor(shape, dtype=torch.float64)
    for p in (0.002, 0.5, 0.98):
        assert float(torch.special.gammainc(a, a * gamma_quantile(shape, p))) == pytest.approx(p, rel=1e-6)


class _Code:
    def __reduce__(self) -> Any:
        return (os.getenv, ("HOME",))


def _bad_inputs(folder: Path, start: State, end: State) -> dict[str, tuple[Callable[[], object], type, str]]:
    name = "model.embed_tokens.weight"
    whole = _file(end, folder / "whole").read_bytes()
    files = {
        "code": pickle.dumps({"model": _Code()}),
        "cut.safetensors": whole[: len(whole) // 2],
        "cut.pt": _torch_file(end, folder / "t").read_bytes()[:3000],
        "cut.pth": _old_torch_file(end, folder / "o").read_bytes()[:3000],
        "text": b"hello there",
        "gguf": b"GGUF\x03\x00\x00\x00",
        "empty": b"",
    }
    for file, content in files.items():
        (folder / file).write_bytes(content)
    torch.save({"model": _Code()}, folder / "code.pt")
    torch.save({"step": 3, "loss": [1.0]}, folder / "no_state.pt")
    (folder / "nothing").mkdir()
    (folder / "dcp").mkdir()
    (folder / "dcp" / ".metadata").write_bytes(b"")

    def given_start(**changed: Tensor | None) -> State:
        return {key: value for key, value in {**start, **changed}.items() if value is not None}

    nan = end[name].clone()
    nan[3, 3] = math.nan
    return {
        "pickled code": (lambda: forensics(folder / "code"), ConfigError, "pickled code"),
        "pickled code in a zip": (lambda: forensics(folder / "code.pt"), ConfigError, "pickled code along"),
        "truncated safetensors": (lambda: forensics(folder / "cut.safetensors"), DamagedError, "truncated"),
        "truncated zip": (lambda: forensics(folder / "cut.pt"), DamagedError, "truncated"),
        "truncated pickle": (lambda: forensics(folder / "cut.pth"), DamagedError, "fetch or save it again"),
        "text": (lambda: forensics(folder / "text"), DamagedError, "neither"),
        "empty file": (lambda: forensics(folder / "empty"), DamagedError, "neither"),
        "gguf": (lambda: forensics(folder / "gguf"), ConfigError, "GGUF"),
        "no state dict": (lambda: forensics(folder / "no_state.pt"), ConfigError, "holds no state dict"),
        "empty directory": (lambda: forensics(folder / "nothing"), ConfigError, "no weights: it holds nothing"),
        "distributed checkpoint": (lambda: forensics(folder / "dcp"), ConfigError, "dcp_to_torch_save"),
        "absent": (lambda: forensics(folder / "absent"), ConfigError, "no such file"),
        "no tensors": (lambda: forensics({}), ConfigError, "holds no tensors"),
        "no embedding": (lambda: forensics({"a.weight": torch.ones(4, 4)}), ConfigError, "--embedding"),
        "unknown embedding": (lambda: forensics(end, embedding="model.embed.weight"), ConfigError, "did you mean"),
        "flat embedding": (
            lambda: forensics(end, embedding="model.layers.0.input_layernorm.weight"), ConfigError, "rows, width",
        ),
        "one row": (lambda: forensics({**end, name: end[name][:1]}), ConfigError, "1 × 48"),
        "NaN": (lambda: forensics({**end, name: nan}), DamagedError, "1 numbers that are not finite"),
        "quantised": (
            lambda: forensics({key: value.to(torch.int8) for key, value in end.items()}), ConfigError, "quantised",
        ),
        "float8": (
            lambda: forensics({key: one.to(torch.float8_e4m3fn) for key, one in end.items()}), ConfigError, "quantised",
        ),
        "quantised embedding": (
            lambda: forensics({**end, name: end[name].to(torch.int8)}), ConfigError, "is quantised",
        ),
        "complex": (lambda: forensics({**end, name: end[name] * 1j}), ConfigError, "complex"),
        "sparse": (lambda: forensics({**end, name: end[name].to_sparse()}), ConfigError, "sparse"),
        "nothing": (lambda: forensics(None), ConfigError, "not NoneType"),  # type: ignore[arg-type]
        "absent tokens": (lambda: forensics(end, tokens=[folder / "absent.npy"]), DataError, "no such file"),
        "meta": (lambda: forensics({**end, name: end[name].to("meta")}), ConfigError, "meta device"),
        "no tensor": (lambda: forensics({**end, "x": 3}), ConfigError, "'x' is int"),  # type: ignore[dict-item]
        "start of other shapes": (
            lambda: forensics(end, against=given_start(**{name: start[name][:7]})), ConfigError, "other shapes",
        ),
        "start of other names": (
            lambda: forensics(end, against=given_start(**{name: None}, other=torch.ones(3, 3))), ConfigError,
            "it lacks (.|\n)*which the checkpoint has not",
        ),
        "start that is the end": (lambda: forensics(end, against=end), ConfigError, "nothing was trained in between"),
        "start and end swapped": (lambda: forensics(start, against=end), ConfigError, "swapped"),
        "impossible std": (lambda: forensics(end, init_std=0.0), ConfigError, "standard deviation"),
        "tokens of another model": (lambda: forensics(end, tokens=[_ids(folder, 500)]), DataError, "500 has no row"),
        "text without tokenizer": (lambda: forensics(end, tokens=[folder / "text"]), DataError, "--tokenizer"),
    }  # fmt: skip


def _ids(folder: Path, last: int) -> Path:
    import numpy as np

    np.save(folder / "ids.npy", np.asarray([1, last]))
    return folder / "ids.npy"


def test_inputs_that_say_nothing_are_refused_with_what_to_do(tmp_path: Path, start: State, end: State) -> None:
    for what, (attempt, kind, said) in _bad_inputs(tmp_path, start, end).items():
        with pytest.raises(kind, match=said) as refusal:
            attempt()
        assert isinstance(refusal.value, WeightDecayError), what


def test_masks_and_counters_of_whole_numbers_are_passed_over(start: State, end: State) -> None:
    extra = {"model.position_ids": torch.arange(9), "model.layers.0.mask": torch.ones(4, 4, dtype=torch.bool)}
    assert _told(forensics({**end, **extra}, against=start).decay_sum).value == pytest.approx(
        -math.log(_KEPT), rel=1e-5
    )


def test_names_of_a_wrapped_model_are_those_of_the_bare_one(start: State, end: State) -> None:
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in end.items()}
    report = forensics(wrapped, against=start)
    assert report.table.name == "model.embed_tokens.weight"
    assert _told(report.decay_sum).value == pytest.approx(-math.log(_KEPT), rel=1e-5)


def test_empty_tensors_and_empty_parts_of_a_configuration_are_passed_over(end: State, tmp_path: Path) -> None:
    folder = _single({**end, "model.layers.1.input_layernorm.weight": torch.ones(0)}, tmp_path / "hf")
    _config(folder, text_config=None)
    json.dumps(forensics(folder, init_std=0.02).document(), allow_nan=False)


def test_nothing_that_is_given_is_changed(start: State, end: State) -> None:
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in (start, end)]
    before = torch.get_rng_state()
    forensics(end, against=start, asked=_ASKED)
    forensics(end, init_std=0.02)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(copy[name], state[name]) for copy, state in zip(copies, (start, end), strict=True) for name in state
    )


def test_every_answer_is_in_the_text_and_in_the_document(start: State, end: State) -> None:
    report = forensics(end, against=start, asked=_ASKED)
    text, document = str(report), json.dumps(report.document(), allow_nan=False)
    for word in ("Σηλ: 0.2231", "lost decay: not lost", "η/λ: cannot be told", "gains: 1 exempt", "biases: 1 cannot"):
        assert word in text
    assert set(json.loads(document)) == {
        "checkpoint", "start", "embedding", "decay_sum", "kept", "lost", "lr_over_weight_decay", "vectors", "asked",
        "remarks",
    }  # fmt: skip


def test_a_module_can_be_asked_itself() -> None:
    config = weightdecay.ModelConfig(vocab_size=64, context=16, n_layers=1, d_model=32, n_heads=2, tied_head=False)
    model = weightdecay.GPT(config)
    assert forensics(model).table.name == "embedding.weight"
