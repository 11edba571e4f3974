"""What to be careful of: with this run, and with any λ. Every sentence says what it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weightdecay.advisor.advice import LawSays, Memory
from weightdecay.advisor.planned import PlannedRun
from weightdecay.laws import (
    FITTED_TOKENS_PER_PARAMETER,
    MANY_EPOCHS,
    NEGLIGIBLE_TOTAL,
    optimal_batch_tokens,
)
from weightdecay.recipes.published.nearest import Neighbours

# PyTorch forms 1 − ηλ and rounds it to float32: at and below 2⁻²⁵ that is 1, and nothing decays.
_FLOAT32_FLOOR = 2.0**-25
# Law and practice so many times apart are said to be.
_APART = 3.0
# A batch so many times the best, or so small a part of it, is told.
_BATCH_APART = 4.0

COUNTER_EXAMPLE = (
    "a counter-example: on a GPT-2 of 163M parameters and one text λ from 0.1 down to 0.01 lowered the loss, 3.692 to "
    "3.643, and the law's 0.337 at a rate that was not tuned for it gave 3.814 [V2]"
)
ALWAYS = (
    "the range is what was used, not what is best: most λ of the database are 0.1, whatever the rate and the length",
    (
        "do not choose λ by held-out loss alone: a larger λ can leave the base model worse and what is fine-tuned from "
        "it better (arXiv:2602.11137 [A])"
    ),
    (
        "η and λ act through their product: where one is tuned, the other moves (Wang & Aitchison 2024, "
        "arXiv:2405.13698 [V])"
    ),
    "accumulating k batches into one at the same η needs k times the λ for the same memory in tokens [D]",
)
"""What holds for any λ."""


def cautions(planned: PlannedRun, near: Neighbours, law: LawSays, memories: Sequence[Memory]) -> Iterator[str]:
    """What to be careful of with this run."""
    yield from _of_the_database(planned, near)
    yield from _of_the_law(planned, near, law)
    yield from _of_what_it_amounts_to(planned, near, memories)
    yield from _of_the_text_and_the_batch(planned)


def _of_the_database(planned: PlannedRun, near: Neighbours) -> Iterator[str]:
    if near.is_far:
        nearest = near.runs[0]
        yield (
            f"no published run of the database is near: the nearest, {nearest.name}, has {nearest.used:.3g} "
            f"parameters, {nearest.tokens:.3g} tokens and lr {nearest.lr:.3g}, up to {near.far:,.0f} times apart"
        )
    if planned.optimizer != "adamw":
        yield (
            f"{len(near.runs)} systems of {planned.optimizer} are known, and they differ {near.high / near.low:,.0f}-"
            "fold in λ: their updates are scaled in different ways, by which λ must be read"
        )


def _of_the_law(planned: PlannedRun, near: Neighbours, law: LawSays) -> Iterator[str]:
    low, high = FITTED_TOKENS_PER_PARAMETER
    without = sorted(planned.tokens / n for n in (law.parameters_without.low, law.parameters_without.high))
    if law.applies and not low <= without[0] <= without[1] <= high:
        yield (
            f"without embeddings there are {without[1]:,.3g} tokens per parameter, outside {low:g} to {high:,g}: "
            "whether the law holds depends on how N is counted"
        )
    ratio = max(law.span.low / near.high, near.low / law.span.high)
    if ratio > _APART:
        than = "more" if law.span.low > near.high else "less"
        yield (
            f"the law gives at least {ratio:.2g} times {than} than any of the nearest runs used: treat it as one "
            f"voice; {COUNTER_EXAMPLE}"
        )


def _of_what_it_amounts_to(planned: PlannedRun, near: Neighbours, memories: Sequence[Memory]) -> Iterator[str]:
    weak = [memory for memory in memories if memory.total < NEGLIGIBLE_TOTAL]
    if weak:
        most = max(weak, key=lambda memory: memory.weight_decay)
        yield (
            f"λ of {most.weight_decay:.3g} and less does next to nothing in this run: Σ of the decay per step is "
            f"{most.total:.2g}, and {100 * most.start:.0f} % of the initial weights would be left"
        )
    if planned.lr * near.high > 1:
        yield f"at lr {planned.lr:g} a step under λ = {near.high:.3g} would remove more than the whole weight: lower lr"
    if planned.lr * near.low <= _FLOAT32_FLOOR:
        yield (
            f"at lr {planned.lr:g} and λ = {near.low:.3g} float32 rounds 1 − ηλ to 1: nothing decays (ηλ ≤ 2⁻²⁵ [C])"
        )


def _of_the_text_and_the_batch(planned: PlannedRun) -> Iterator[str]:
    if planned.epochs > MANY_EPOCHS:
        yield (
            f"{planned.epochs:g} epochs are another regime: the best λ was up to 30 times the usual, on 200M tokens "
            "(Kim et al. 2025, arXiv:2509.14786 [A]); slowrun takes 0.8 to 1.6 on 100M tokens under Muon "
            "(qlabs-eng/slowrun@fd342f0 [R]); against it: GPT-2s on 23 and 33 epochs of OpenWebText took 0.1 "
            "(stanford-crfm/mistral@bf9eff0, karpathy/nanoGPT@3adf61e [R])"
        )
    best = optimal_batch_tokens(planned.tokens)
    if not 1 / _BATCH_APART < planned.batch_tokens / best < _BATCH_APART:
        than = "larger" if planned.batch_tokens > best else "smaller"
        apart = max(planned.batch_tokens / best, best / planned.batch_tokens)
        yield f"the batch is {apart:.2g} times {than} than B_opt"
