"""The findings as Markdown, and as one page that needs nothing from outside."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from weightdecay.auditing.findings import Finding
from weightdecay.auditing.rendering import patterns
from weightdecay.auditing.result import Audit
from weightdecay.errors import printable

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; vertical-align: top; overflow-wrap: anywhere; }
td { border-top: 1px solid #8884; }
pre { overflow-x: auto; padding: .8rem; background: #8881; }
.error { color: #b00020; } .warning { color: #9a6700; } .note { color: #0969da; } .said { font-weight: 600; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } .error { color: #ff7b8a; }
.warning { color: #e3b341; } .note { color: #6cb6ff; } }
"""


def as_markdown(title: str, audit: Audit | None, where: Sequence[str], notes: Sequence[str]) -> str:
    """For an issue, a pull request or a job's summary."""
    lines = [f"# {_plain(title)}", ""]
    lines += [f"> {_plain(note)}\n" for note in notes]
    lines += [f"{_plain(one)}\n" for one in where]
    return "\n".join(lines) + ("" if audit is None else f"\n{audit.to_markdown()}")


def _plain(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_|<>[]" else c for c in printable(text)).replace("\n", " ")


def as_html(title: str, audit: Audit | None, where: Sequence[str], notes: Sequence[str]) -> str:
    """For a browser."""
    body = [f"<h1>{_text(title)}</h1>"]
    body += [f'<p class="warning said">{_text(note)}</p>' for note in notes]
    body += [f"<p>{_text(one)}</p>" for one in where]
    if audit is not None:
        body.append(f'<p class="said">{_text(audit.summary())}</p>')
        body += [*_table(audit.findings), *(part for one in audit.findings for part in _story(one))]
        body += [f"<p>{_text(remark)}</p>" for remark in audit.remarks]
        if audit.unknown:
            body.append(f"<p>unknown role, and so not judged by it: {_text(patterns(audit.unknown))}</p>")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    headings = ("severity", "code", "parameters", "asked → done", "tensors")
    yield "<table><thead><tr>" + "".join(f"<th>{heading}</th>" for heading in headings) + "</tr></thead><tbody>"
    for one in findings:
        amounts = "" if one.asked is None or one.realised is None else f"{one.asked:.1e} → {one.realised:.1e}"
        cells = (one.severity, one.code, f"{one.elements:,}", amounts, patterns(one.tensors))
        yield "<tr>" + "".join(
            f'<td class="{_class(one, place)}">{_text(cell)}</td>' for place, cell in enumerate(cells)
        )
        yield "</tr>"
    yield "</tbody></table>"


def _class(finding: Finding, place: int) -> str:
    return finding.severity if place == 0 else ""


def _story(finding: Finding) -> Iterator[str]:
    yield f'<h2 class="{finding.severity}">{_text(finding.code)}: {_text(finding.title)}</h2>'
    why = f"{finding.why} ({finding.source})" if finding.why and finding.source else finding.why
    yield from (f"<p>{_text(said)}</p>" for said in (finding.detail, why) if said)
    if finding.fix:
        yield f"<pre>{_text(finding.fix)}</pre>"
    names = _text(", ".join(finding.tensors))
    yield f"<details><summary>{len(finding.tensors)} tensors</summary><p>{names}</p></details>"


def _text(text: str) -> str:
    return html.escape(printable(text))
