"""What tests stand on: ranks that are forked end together."""

from __future__ import annotations

import time

import pytest

from tests.forking import ForkServer


def wait_for_one_that_fails(rank: int) -> None:
    if rank == 1:
        raise ValueError("this is why")
    time.sleep(100)


def test_a_rank_that_fails_ends_the_others_and_is_heard(forks: ForkServer) -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="this is why"):
        forks.ranks(wait_for_one_that_fails)
    assert time.monotonic() - started < 60
