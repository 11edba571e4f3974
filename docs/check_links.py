"""Every relative link and anchor in the repository's Markdown leads somewhere; prints each that does not, exits 1."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent


def anchors(path: Path) -> set[str]:
    """Anchors as GitHub makes them: lower case, punctuation dropped, spaces as hyphens."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def targets(tokens: list[Token]) -> list[str]:
    found = []
    for token in tokens:
        found += [str(token.attrs[key]) for key in ("href", "src") if key in token.attrs]
        if token.type in ("html_block", "html_inline"):
            found += re.findall(r'(?:href|src)="([^"]+)"', token.content)
        found += targets(token.children or [])
    return found


def dead_links(page: Path) -> list[str]:
    dead = []
    for target in targets(MarkdownIt().parse(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):  # https:, mailto: are not ours to check offline
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / unquote(name)).resolve() if name else page
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            dead.append(f"{page.relative_to(ROOT)}: {target}")
    return dead


def main() -> int:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    dead = [link for page in tracked if (ROOT / page).exists() for link in dead_links(ROOT / page)]
    for link in dead:
        print(f"dead link: {link}", file=sys.stderr)
    print(f"{len(tracked)} Markdown files, {len(dead)} dead links")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
