"""What all processes of a run saw, brought together by the first of them, written and told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightdecay.errors import StorageError, WeightDecayError
from weightdecay.storage import whole_file
from weightdecay.watching import telling
from weightdecay.watching.leaving import How
from weightdecay.watching.settings import Settings

if TYPE_CHECKING:
    from weightdecay.auditing.result import Audit
    from weightdecay.watching.steps import Steps


@dataclass(frozen=True)
class Examined:
    """One audit of one model.

    Attributes:
        step: just before which it was made; of the optimizer that came there first.
        at_end: it was made when the program ended, which was before the step that was asked for.
        model: its class; "" where the tensors belong to none.
        optimizers: their classes.
        audit: as a document; empty where it failed.
        failed: why it could not be made.
        plan: what was wrong with the plan that was to be written or to be compared with.
        notes: what else is to be known.
    """

    step: int
    model: str
    optimizers: list[str]
    elapsed_s: float
    at_end: bool = False
    audit: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    plan: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How the first process ended.

    Attributes:
        steps: what it saw itself; None if it has not imported torch.
    """

    how: How | str
    code: int | None
    steps: Steps | None = None


class Records:
    """The audits of a run, in a folder that its processes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.speaks = _rank_of_environment() == 0 or not settings.is_root

    # --- from any process

    def add(self, examined: Examined) -> None:
        """Keep an audit, and write the files anew: the program may not come to its end."""
        folder = Path(self.settings.folder)
        partial = folder / f".{os.getpid()}-{time.monotonic_ns()}"
        partial.write_text(json.dumps(asdict(examined), ensure_ascii=False), encoding="utf-8")
        partial.replace(folder / f"audit-{time.time_ns()}-{os.getpid()}.json")
        self._write(Outcome("running", None))

    def seen(self, kind: str) -> None:
        """Let the first process know that an optimizer makes steps here."""
        Path(self.settings.folder, f"seen-{os.getpid()}-{time.monotonic_ns()}.json").write_text(
            json.dumps(kind), encoding="utf-8"
        )

    def all(self) -> list[Examined]:
        files = sorted(Path(self.settings.folder).glob("audit-*.json"))
        return [Examined(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    # --- from the first process

    def begin(self) -> None:
        """Write the files, so that nobody takes those of an earlier run for this one's.

        Raises:
            StorageError: one cannot be written.
        """
        self._write(Outcome("running", None), must=True)

    def end(self, outcome: Outcome) -> bool:
        """Write and tell; whether something that was asked to be so is not."""
        if not self.speaks:
            return False
        faults = self._write(outcome)
        examined = self.all()
        notes = self._notes(outcome, examined)
        for note in notes:
            telling.tell(note)
        if self.settings.stdout is not None:
            self._print(json.dumps(self.document(outcome), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        is_wrong = self._fails(examined) or any(one.plan for one in examined)
        wants = bool(self.settings.fail_on or self.settings.lock or self.settings.check)
        has_none = not any(one.audit for one in examined)
        telling.tell(self._last_word(outcome, examined, faults))
        return is_wrong or (wants and has_none) or bool(faults)

    def _fails(self, examined: Sequence[Examined]) -> bool:
        counted = {"error": {"error"}, "warning": {"error", "warning"}}.get(self.settings.fail_on, set())
        severities = {finding["severity"] for one in examined for finding in one.audit.get("findings", [])}
        return bool(counted & severities) or bool(counted and any(one.failed for one in examined))

    # --- what is said

    def _notes(self, outcome: Outcome, examined: Sequence[Examined]) -> list[str]:
        """What is to be known about the run beside the findings."""
        said = [note for one in examined for note in one.notes]
        said += [one.plan for one in examined if one.plan]
        said += [
            f"the audit of {one.model or 'some tensors'} could not be made: {one.failed}"
            for one in examined
            if one.failed
        ]
        if outcome.how == "replaced":
            said.append(
                "the program became another one, which is not watched: what it has done until then is told; name that "
                "program after -- to watch it"
            )
        if not examined and outcome.how != "running":
            said.append(self._nothing_seen(outcome))
        return list(dict.fromkeys(said))

    def _nothing_seen(self, outcome: Outcome) -> str:
        """Why nothing was audited."""
        elsewhere = [json.loads(file.read_text(encoding="utf-8")) for file in Path(self.settings.folder).glob("seen-*")]
        watched = [] if outcome.steps is None else [one for one in outcome.steps.watched if one.steps]
        steps = {f"{one.kind} made {one.steps} step{'' if one.steps == 1 else 's'}": None for one in watched}
        ended = f"the program ended before step {self.settings.at_step}, so that NOTHING WAS AUDITED"
        if steps:
            return f"{ended}: {', '.join(steps)}, and its model is gone; give a smaller --at-step"
        if elsewhere:
            return f"{ended}: {', '.join(dict.fromkeys(elsewhere))} stepped in a process that it started"
        why = (
            "it never imported torch"
            if outcome.steps is None
            else f"it made {outcome.steps.backwards} backward passes, and no step that could be told"
            if outcome.steps.backwards
            else "it imported torch, and made no backward pass"
        )
        return (
            f"NO OPTIMIZER WAS SEEN, and nothing was audited: {why}; if it trains in processes of another Python, or "
            "updates weights by hand, paste weightdecay.audit(model, optimizer) into the loop"
        )

    def _last_word(self, outcome: Outcome, examined: Sequence[Examined], faults: Sequence[str]) -> str:
        audited = [one for one in examined if one.audit]
        said = [f"{combined(audited).summary()}"] if audited else ["nothing was audited"]
        written = [name for name in self.settings.out if not any(name in fault for fault in faults)]
        said += [f"written to {', '.join(written)}"] if written else []
        if outcome.code:
            said.append(f"the program ended with {outcome.code}")
        elif self._fails(examined):
            said.append(f"exit 3, for --fail-on {self.settings.fail_on}")
        return "; ".join(said)

    def document(self, outcome: Outcome) -> dict[str, Any]:
        """All findings as an audit's document, and what is to be known of the run."""
        from weightdecay.auditing.ignoring import FORMAT, SCHEMA_VERSION

        examined = self.all()
        audited = [one for one in examined if one.audit]
        own: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "format": FORMAT, "ok": False, "findings": []}
        if audited:
            own = combined(audited).document()
        steps = [] if outcome.steps is None else outcome.steps.watched
        own["watch"] = {
            "program": list(self.settings.program),
            "status": outcome.how,
            "exit_code": outcome.code,
            "at_step": self.settings.at_step,
            "audits": [{key: value for key, value in asdict(one).items() if key != "audit"} for one in examined],
            "optimizers": [{"class": one.kind, "steps": one.steps} for one in steps if one.steps],
            "notes": self._notes(outcome, examined),
        }
        return own

    # --- files

    def _write(self, outcome: Outcome, *, must: bool = False) -> list[str]:
        """Write all files; the faults of those that cannot be written."""
        faults: list[str] = []
        for name in self.settings.out if self.speaks else ():
            try:
                self._write_one(Path(name), outcome)
            except (OSError, WeightDecayError) as error:
                faults.append(str(error) if isinstance(error, StorageError) else f"{name}: cannot be written: {error}")
        if faults and must:
            raise StorageError(faults)
        for fault in faults:
            telling.tell(fault)
        return faults

    def _write_one(self, path: Path, outcome: Outcome) -> None:
        text = self._text(path.suffix.lower(), outcome).encode()
        if path.exists() and not path.is_file():  # a pipe, or a device
            path.write_bytes(text)
            return
        with whole_file(path) as file:
            file.write(text)

    def _text(self, suffix: str, outcome: Outcome) -> str:
        if suffix == ".json":
            return json.dumps(self.document(outcome), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        from weightdecay.watching.page import as_html, as_markdown

        examined = self.all()
        audited = [one for one in examined if one.audit]
        title = f"What {' '.join(self.settings.program)} does to its weights"
        audit = combined(audited) if audited else None
        write = as_html if suffix == ".html" else as_markdown
        return write(title, audit, [where(one) for one in audited], self._notes(outcome, examined))

    def _print(self, text: str) -> None:
        rest = text.encode()
        descriptor = self.settings.stdout
        while rest and descriptor is not None:
            rest = rest[os.write(descriptor, rest) :]


def combined(examined: Sequence[Examined]) -> Audit:
    """Several audits as one."""
    from weightdecay.auditing.findings import Finding, ranked
    from weightdecay.auditing.result import Audit

    # Ranks that know nothing of each other see the same.
    different = {json.dumps([one.model, one.optimizers, one.audit["findings"]]): one.audit for one in examined}
    documents = list(different.values())
    findings = {
        (one["code"], one["severity"], one["title"], tuple(one["tensors"])): Finding(
            **{**one, "tensors": tuple(one["tensors"])}
        )
        for document in documents
        for one in document["findings"]
    }
    ignored: dict[str, int] = {}
    for document in documents:
        for code, count in document["ignored"].items():
            ignored[code] = ignored.get(code, 0) + count
    return Audit(
        findings=tuple(ranked(list(findings.values()))),
        ignored=ignored,
        unknown=tuple(dict.fromkeys(name for document in documents for name in document["unknown"])),
        remarks=tuple(dict.fromkeys(remark for document in documents for remark in document["remarks"])),
        tensors=sum(document["tensors"] for document in documents),
        elements=sum(document["elements"] for document in documents),
        elapsed_s=sum(document["elapsed_s"] for document in documents),
    )


def where(one: Examined) -> str:
    """Of what, by what, and when."""
    when = "when the program ended" if one.at_end else f"just before step {one.step}"
    return f"{one.model or 'tensors of no module'}, stepped by {', '.join(one.optimizers)}; {when}"


def _rank_of_environment() -> int:
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0
