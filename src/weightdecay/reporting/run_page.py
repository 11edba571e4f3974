"""The page of one run: what was asked, what came of it and how sure that is, and what lies behind."""

from __future__ import annotations

from collections.abc import Iterator

from weightdecay.diagnosing.diagnosis import Diagnosis
from weightdecay.errors import printable
from weightdecay.laws import NEGLIGIBLE_TOTAL
from weightdecay.reporting.page import Figure, Finding, Page, Section
from weightdecay.reporting.run_pictures import WIDE, decay_of_steps, run_pictures
from weightdecay.reporting.run_record import RunRecord, number
from weightdecay.reporting.sections import environment_section, plan_section, recipe_section, repeat_section
from weightdecay.reporting.theory import diagnosis_of, findings_of, theory_section
from weightdecay.timescale import memory_coefficients

# A held-out loss that has risen by less than this since its best is the noise of an evaluation.
_RISEN = 0.005
_MOST_OF_IT = 0.95


def run_page(record: RunRecord) -> Page:
    """The page."""
    pictures = run_pictures(record)
    figures = [Figure(picture, picture.alt, wide=picture.id in WIDE) for picture in pictures]
    sections = [Section("plots", "The run", figures)] if figures else []
    diagnosis = diagnosis_of(record)
    if diagnosis and (theory := theory_section(diagnosis)):
        sections.append(theory)
    sections += [plan_section(record.plan)] if record.plan is not None else []
    sections += [recipe_section(record.config)] if record.config else []
    sections += [environment_section([record]), repeat_section([record])]
    return Page(
        title=record.name,
        asked=asked(record),
        answer=" ".join(_answer(record)),
        key_figures=list(_key_figures(record)),
        findings=findings(record, diagnosis),
        sections=sections,
    )


def asked(record: RunRecord) -> str:
    """What was asked of the run, in a sentence."""
    config = record.config
    if config is None:
        return "What was asked of this run cannot be read."
    optimizer, run = config.optimizer, config.run
    sources = ", ".join(printable(source) for source in config.data.sources) or "the Python standard library's sources"
    λ = optimizer.weight_decay if isinstance(optimizer.weight_decay, str) else f"{optimizer.weight_decay:.4g}"
    return (
        f"Train {config.recipe or 'a model'} with {optimizer.name} for {run.steps:,} steps of {run.batch_tokens:,} "
        f"tokens on {sources}, at η = {optimizer.lr:.4g} and λ = {λ} ({optimizer.rule}; policy "
        f"{printable(optimizer.policy)}; seed {run.seed})."
    )


def _answer(record: RunRecord) -> Iterator[str]:
    yield _progress(record)
    yield from _result(record)
    yield from _decay(record)
    if record.evaluations:
        yield "This is one seed: how far another would be from it, one run cannot tell."


def _progress(record: RunRecord) -> str:
    """How far it is, and whether it went wrong."""
    ended = " It diverged: its loss ended above that of its start, or as no number." if record.diverged else ""
    steps = f" of {record.steps:,}" if record.steps else ""
    tokens = number(record.last.get("tokens"))
    so_far = f"step {record.step:,}{steps}" + (f", {tokens:,.0f} tokens" if tokens else "")
    match record.status:
        case "finished":
            return f"The run is finished: {so_far}.{ended}"
        case "running":
            return f"The run is going on: {so_far} when this page was made.{ended}"
        case _:
            return f"The run stopped at {so_far}.{ended or ' The same command with the same --out goes on.'}"


def _result(record: RunRecord) -> Iterator[str]:
    held_out, best = record.held_out, record.best
    loss = number(held_out.get("val_loss"))
    if loss is None:
        training = number(record.last.get("loss"))
        if training is not None:
            yield f"Its training loss is {training:.3f} nats a token; it was not judged on held-out text yet."
        return
    bits = number(held_out.get("val_bits_per_byte"))
    told = f"{bits:.3f} bits per byte ({loss:.3f} nats a token)" if bits is not None else f"{loss:.3f} nats a token"
    tokens = number(held_out.get("val_tokens"))
    on = f"{tokens:,.0f} tokens of text that it was not trained on" if tokens else "text that it was not trained on"
    yield f"On {on} its loss is {told}."
    if best and loss > (1 + _RISEN) * best["val_loss"]:
        yield (
            f"It was lowest at step {best['step']:,} with {best['val_loss']:.3f} nats and has risen by "
            f"{loss - best['val_loss']:.3f} since: from there on the model learnt its training text, not the language."
        )


def _decay(record: RunRecord) -> Iterator[str]:
    decay_T = decay_of_steps(record)
    if decay_T is None:
        if record.config and record.config.optimizer.rule == "l2":
            yield "Its decay goes through the gradient, whose size decides what a step removes."
        return
    total = float(decay_T.sum())
    if not total:
        yield "Nothing decayed."
        return
    coefficients_T, left = memory_coefficients(decay_T)
    yield f"The decay per step adds up to {total:.3g}: without gradients {100 * left:.3g} % of a weight would be left."
    if total < NEGLIGIBLE_TOTAL:
        yield f"Below {NEGLIGIBLE_TOTAL:g} a decay does next to nothing."
    elif left < 1 - _MOST_OF_IT:
        recent = coefficients_T[::-1].cumsum()
        last = int((recent < _MOST_OF_IT).sum()) + 1
        share = 100 * last / len(decay_T)
        yield f"{100 * _MOST_OF_IT:g} % of the final weights come from the last {share:.0f} % of the run."


def _key_figures(record: RunRecord) -> Iterator[tuple[str, str]]:
    key, label, unit = record.measure()
    if (value := number(record.held_out.get(key))) is not None:
        yield f"{value:.3f}", f"{label}, {unit}"
    if (loss := number(record.last.get("loss"))) is not None:
        yield f"{loss:.3f}", "training loss, nats a token"
    if record.config and not isinstance(record.config.optimizer.weight_decay, str):
        yield f"{record.config.optimizer.weight_decay:.3g}", f"λ, {record.config.optimizer.rule}"
    if (decay_T := decay_of_steps(record)) is not None:
        yield f"{float(decay_T.sum()):.3g}", "Σ of the decay per step"
    steps = f"/{record.steps:,}" if record.steps and record.steps != record.step else ""
    yield f"{record.step:,}{steps}", "steps"


def findings(record: RunRecord, diagnosis: Diagnosis | None) -> list[Finding]:
    """What a reader should know before believing the numbers, worst first."""
    of_its_decay = findings_of(diagnosis) if diagnosis else ()
    found = [*record.faults, *_of_the_run(record, diagnosis), *of_its_decay]
    order = ("error", "warning", "note", "good")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _of_the_run(record: RunRecord, diagnosis: Diagnosis | None) -> Iterator[Finding]:
    told = {alarm.code for alarm in diagnosis.findings} if diagnosis else set()
    if record.diverged and "diverged" not in told:
        yield Finding("error", "The run diverged", "Lower the learning rate, warm up longer, or clip the gradient.")
    if diagnosis is None:
        yield Finding("note", "Its decay was not diagnosed", "Not all of its files and rows can be read.")
    skipped = number(record.last.get("skipped_steps"))
    if skipped:
        words = f"{skipped:,.0f} steps had a gradient that was not finite, and made no update."
        yield Finding("warning", "Steps without an update", words)
    if not record.training:
        yield Finding("note", "No step was logged yet", "The plots come with the first rows of metrics.jsonl.")
    elif not record.evaluations:
        yield Finding("note", "Not judged on held-out text yet", "Its first evaluation is still to come.")
    if record.evaluations and number(record.held_out.get("val_bits_per_byte")) is None:
        words = "Its tokenizer loses text: bits per byte would praise the one that loses most."
        yield Finding("note", "No bits per byte", words)
