"""Write plan.md's table of how right the plan is on other people's models, from what is recorded of them.

`.venv-zoo/bin/python -m tests.zoo.skeletons` records them; this needs none of their packages.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import table, write_block

from tests.zoo.judging import judge
from tests.zoo.skeletons import Skeleton, read, rows
from weightdecay.planning.plan import plan_tensors

HEADER = ("package", "models", "wholly right", "with a batch", "`ndim >= 2`")


def is_right(skeleton: Skeleton, given: bool) -> bool:
    """Whether every tensor whose label is not open is planned as its source says."""
    if given and skeleton.fault:
        return False
    tensors = skeleton.tensors(given)
    labels = {facts.name: label for facts, label in zip(tensors, skeleton.labels, strict=True)}
    return all(one.right for one in judge(plan_tensors(tensors, unknown="exempt"), labels))


def naive_is_right(skeleton: Skeleton) -> bool:
    """The usual rule on what is trained."""
    return all(
        label in ("open", "decays" if len(facts.shape) >= 2 else "exempt")
        for facts, label in zip(skeleton.guessed, skeleton.labels, strict=True)
        if facts.trainable
    )


def cells(name: str, skeletons: Sequence[Skeleton]) -> list[str]:
    counts = [
        len(skeletons),
        sum(is_right(one, given=False) for one in skeletons),
        sum(is_right(one, given=True) for one in skeletons),
        sum(map(naive_is_right, skeletons)),
    ]
    return [name, *map(str, counts)]


def main() -> None:
    found = list(rows())
    tensors = sum(len(skeleton.labels) for skeleton in read())
    opinions = sum(skeleton.labels.count("open") for skeleton in read())
    said = (
        f"{len(read())} small models of {len(found)} packages hold {tensors:,} tensors; the {opinions:,} on which the "
        "field has two opinions do not count. A model is right when no tensor of it is wrong or unknown: on guessed "
        "inputs, or with a batch. Beside it the usual rule, that what has two axes or more decays."
    )
    numbers = [cells(f"`{name}`", skeletons) for name, skeletons in found]
    write_block("plan.md", "zoo", f"{textwrap.fill(said, 118)}\n\n{table(HEADER, [*numbers, cells('all', read())])}")


if __name__ == "__main__":
    main()
