"""The audit in a test: a fixture that audits a loop, a marker that audits whatever a test trains, and baselines.

    import pytest

    def test_our_optimizer_decays_as_we_mean(weightdecay_audit):
        weightdecay_audit(model, optimizer, weight_decay=0.1)

    @pytest.mark.weightdecay_audit(weight_decay=0.1, fail_on="error")
    def test_training_runs():
        for batch in batches:
            model(batch).mean().backward()
            optimizer.step()

Installed with weightdecay (`-p no:weightdecay` leaves it out). torch is imported by tests that ask for it alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from weightdecay.auditing.result import Audit

MARKER = "weightdecay_audit"
_PROPERTY = "weightdecay"
_FAIL_ON = ("error", "warning")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("weightdecay", "which weights decay otherwise than asked")
    group.addoption(
        "--weightdecay-write-baselines",
        action="store_true",
        help="write what audits find now into the ini option weightdecay_baselines, and let it pass",
    )
    parser.addini(
        "weightdecay_baselines",
        "folder of what a team lives with: a file for each test, as Audit.to_json() writes it",
        default="",
    )
    parser.addini("weightdecay_fail_on", "error or warning: what fails a test (default: warning)", default="warning")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(at_step=1, fail_on=…, **asked): audit what the test trains, just before a step of its optimizers; "
        "with the fixture of the same name, what it audits by default",
    )
    fail_on = config.getini("weightdecay_fail_on")
    if fail_on not in _FAIL_ON:
        raise pytest.UsageError(f"weightdecay_fail_on is {fail_on!r}: it is error or warning")
    if config.getoption("weightdecay_write_baselines") and not config.getini("weightdecay_baselines"):
        raise pytest.UsageError("--weightdecay-write-baselines: set weightdecay_baselines to a folder for them")


class Auditor:
    """What the fixture gives: called with a model and its optimizers it audits them, and fails the test.

    Attributes:
        audits: what was found, in order.
    """

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        marker = item.get_closest_marker(MARKER)
        self._asked = {key: value for key, value in (marker.kwargs if marker else {}).items() if key != "at_step"}
        self.audits: list[Audit] = []

    def __call__(self, model: Any, optimizer: Any = None, *, fail_on: str | None = None, **asked: Any) -> Audit:
        """Audit; the arguments are those of `weightdecay.audit`, and go over the marker's.

        Args:
            fail_on: `"error"` or `"warning"`.
        """
        from weightdecay.auditing.audit import audit
        from weightdecay.errors import ConfigError

        asked = {**self._asked, **asked}
        fail_on = fail_on or asked.pop("fail_on", None) or self._item.config.getini("weightdecay_fail_on")
        asked.pop("fail_on", None)
        if fail_on not in _FAIL_ON:
            raise ConfigError(f"fail_on is {fail_on!r}: it is 'error' or 'warning'")

        baseline = self._baseline()
        writes = baseline is not None and self._item.config.getoption("weightdecay_write_baselines")
        if baseline is not None and baseline.is_file() and not writes:
            if "ignore" in asked:
                raise ConfigError(f"ignore is given, and {baseline} says what is ignored: leave one of them out")
            asked["ignore"] = baseline
        found = audit(model, optimizer, **asked)
        self.audits.append(found)

        if baseline is not None and writes:
            _write(baseline, found)
            self._tell(found.summary() + ("" if found.ok else f"; written to {baseline.name}"))
            return found
        idle = baseline is not None and baseline.is_file() and not found.ignored
        self._tell(found.summary() + (f"; {baseline} is needed no more" if idle else ""))
        if any(finding.severity in _FAIL_ON[: _FAIL_ON.index(fail_on) + 1] for finding in found):
            pytest.fail(str(found), pytrace=False)
        return found

    def _tell(self, said: str) -> None:
        """For the end of the session; reports carry it there from other processes, too, and into JUnit's file."""
        self._item.user_properties.append((_PROPERTY, said))

    def _baseline(self) -> Path | None:
        """The file of this test's audit, whether it is there or not; None where no baselines are kept."""
        folder = self._item.config.getini("weightdecay_baselines")
        if not folder:
            return None
        name = re.sub(r"[^\w.-]+", "-", self._item.nodeid.replace("::", "--")).strip("-")
        place = len(self.audits)
        return self._item.config.rootpath / str(folder) / f"{name}{f'-{place + 1}' if place else ''}.json"


@pytest.fixture
def weightdecay_audit(request: pytest.FixtureRequest) -> Auditor:
    """Audits a model and its optimizers; the test fails where something decays otherwise than asked."""
    return Auditor(request.node)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker(MARKER)
    if marker is None or MARKER in getattr(item, "fixturenames", ()):
        return (yield)
    auditor, at_step = Auditor(item), marker.kwargs.get("at_step", 1)
    with _audited(auditor, at_step):
        result = yield
    if not auditor.audits:
        pytest.fail(f"nothing was audited: no optimizer of torch's made step {at_step} in this test", pytrace=False)
    return result


def _audited(auditor: Auditor, at_step: int) -> Any:
    """In here each model is audited once, just before that step of its optimizers."""
    from collections import Counter
    from contextlib import contextmanager

    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from weightdecay.watching.owners import Owners, held_by, tensors_of

    @contextmanager
    def audited() -> Iterator[None]:
        def is_wrapper(one: Any, other: Any) -> bool:
            """Whether one of them holds the other, whose steps are its own."""
            return any(held is other for held in held_by(one)) or any(held is one for held in held_by(other))

        steps: Counter[int] = Counter()
        kept: list[Any] = []  # no other optimizer gets the number of one that is gone
        done: set[int] = set()

        def look(optimizer: Any, *_: Any) -> None:
            kept.append(optimizer)
            steps[id(optimizer)] += 1
            tensors = tensors_of(optimizer)
            if steps[id(optimizer)] != at_step or {id(tensor) for tensor in tensors} & done:
                return
            owners = Owners(sys._getframe(1), known=[optimizer])
            model = owners.model_of(tensors)
            optimizers = [
                one
                for one in owners.optimizers_of(model, tensors)
                if one is optimizer or (hasattr(one, "param_groups") and not is_wrapper(one, optimizer))
            ]
            done.update(id(tensor) for one in optimizers for tensor in tensors_of(one))
            auditor(model, optimizers[0] if len(optimizers) == 1 else optimizers)

        handle = register_optimizer_step_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()

    return audited()


def _write(path: Path, found: Audit) -> None:
    """A baseline, or none where nothing is wrong."""
    if found.ok:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(found.to_json(), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    said = [
        f"{report.nodeid}: {value}"
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in (getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ())
        if name == _PROPERTY
    ]
    if said:
        terminalreporter.section("weightdecay")
        for line in said:
            terminalreporter.line(line)
