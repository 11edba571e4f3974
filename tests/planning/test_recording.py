"""What a recording says of tensors: their axes through changes of form, and that none is taken for one that is gone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightdecay.planning.evidence.axes import LOST, moved
from weightdecay.planning.evidence.following import uses_of
from weightdecay.planning.evidence.origins import takers
from weightdecay.planning.evidence.recorder import Recorder, Recording


def recorded(before: torch.Tensor, change: st.DataObject) -> tuple[torch.Tensor, Recording]:
    """A tensor in another form, drawn, and how that was recorded."""
    with torch.no_grad(), Recorder({}, [before]) as recorder:
        kind = change.draw(st.sampled_from(["permute", "transpose", "view", "unsqueeze"]))
        if kind == "permute":
            return before.permute(change.draw(st.permutations(range(before.dim())))), recorder.recording
        if kind == "transpose":
            axes = change.draw(st.integers(0, before.dim() - 1)), change.draw(st.integers(-before.dim(), -1))
            return before.transpose(*axes), recorder.recording
        if kind == "unsqueeze":
            return before.unsqueeze(change.draw(st.integers(0, before.dim()))), recorder.recording
        sizes = change.draw(st.permutations([2, 3, 4] if before.numel() == 24 else list(before.shape)))
        cut = change.draw(st.integers(0, len(sizes)))
        return before.reshape(*sizes[:cut], math.prod(sizes[cut:])), recorder.recording


@given(shape=st.permutations([2, 3, 4]), along=st.sets(st.integers(-3, -1), min_size=1), change=st.data())
def test_the_axes_along_which_a_tensor_varies_are_followed_through_its_forms(
    shape: list[int], along: set[int], change: st.DataObject
) -> None:
    parts = [torch.arange(size, dtype=torch.float64) if axis - 3 in along else torch.zeros(size)
             for axis, size in enumerate(shape)]  # fmt: skip
    before = (parts[0][:, None, None] * 100 + parts[1][:, None] * 10 + parts[2]).clone()
    after, recording = recorded(before, change)
    (operation,) = recording.operations[-1:]
    forms = operation.operands[0].shape, operation.results[0].shape
    found = moved(frozenset(along), ((operation.name, operation.axes, *forms),))  # type: ignore[arg-type]
    varies = {axis - after.dim() for axis in range(after.dim()) if after.diff(dim=axis).abs().sum() > 0}
    assert found in (varies, frozenset())
    assert found or operation.name not in ("permute", "transpose", "unsqueeze")


def test_after_too_many_changes_nothing_is_known() -> None:
    assert moved(frozenset({-1}), (LOST,)) == frozenset()


@pytest.mark.parametrize("kept", [True, False])
def test_memory_that_was_written_and_freed_says_nothing_of_what_lies_there_next(kept: bool) -> None:
    """Addresses are given out again; a weight written into a buffer that is gone is in no later one."""
    w, x = torch.ones(8), torch.ones(2, 8)
    with torch.no_grad(), Recorder({"w": w}, [x]) as recorder:
        for _ in range(50):
            written = torch.zeros(8)
            written += w
            view = written[:4]
            del written
            fresh = view.view(4) if kept else torch.zeros(4)
            del view
            _ = x[:, :4] * fresh
            del fresh
    assert ("w" in uses_of(recorder.recording)) == kept


def test_a_tensor_is_taken_with_its_views_and_without_its_copies() -> None:
    x = torch.ones(4, 6)
    with torch.no_grad(), Recorder({}, [x]) as recorder:
        _ = x.view(24).exp() + x.clone().flatten().sin().sum() + x.t().float().cos().sum()
    (number,) = recorder.recording.inputs
    assert takers(recorder.recording.operations)[number] == 2
