"""What tests stand on: ranks that are forked end together, and the process that forks stays for every worker."""

from __future__ import annotations

import select
import time

import pytest

from tests.forking import STAY, ForkServer, connected


def wait_for_one_that_fails(rank: int) -> None:
    if rank == 1:
        raise ValueError("this is why")
    time.sleep(100)


def test_a_rank_that_fails_ends_the_others_and_is_heard(forks: ForkServer) -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="this is why"):
        forks.ranks(wait_for_one_that_fails)
    assert time.monotonic() - started < 60


def test_the_process_that_forks_stays_for_a_worker_until_that_leaves(forks: ForkServer) -> None:
    """Whoever began it may be done sooner."""
    with connected(forks.address) as worker:
        worker.send(STAY)
        assert worker.recv(len(STAY)) == STAY
        for _ in range(2):  # it looks at its workers each time
            assert "weightdecay" in forks.start("--version").communicate(60)[0]
        assert not select.select([worker], [], [], 0.2)[0], "it has let go of the worker"
