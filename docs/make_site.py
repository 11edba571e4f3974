"""Build the documentation's site: the pages of this folder, the README, the changelog, and the public docstrings.

python docs/make_site.py      writes build/docs/html, and fails on a link that leads nowhere

What the repository holds beside its documentation (tests, sources) has no page: a link to it becomes its path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import weightdecay

ROOT = Path(__file__).resolve().parent.parent
DOCS, BUILT = ROOT / "docs", ROOT / "build" / "docs"
# Pages that stand elsewhere in the repository, and what they are called on the site.
ELSEWHERE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# Rooms of the library, in the order in which a newcomer meets them.
ROOMS = {
    "planning": "Plans: which tensors decay, and why",
    "auditing": "Audits: what a step really does",
    "monitoring": "The monitor: what decay does in a run",
    "diagnosing": "Diagnoses of runs",
    "advisor": "Advice: which λ",
    "optim": "Optimizers, control and state",
    "rules": "Rules",
    "schedules": "Schedules",
    "models": "Models",
    "recipes": "Recipes and settings",
    "training": "Training",
    "evaluation": "Trained models",
    "runs": "Run directories",
    "errors": "Errors",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def main() -> int:
    shutil.rmtree(BUILT, ignore_errors=True)
    (BUILT / "pages" / "api").mkdir(parents=True)
    settings = (DOCS / "site.toml").read_text(encoding="utf-8")
    (BUILT / "zensical.toml").write_text(settings, encoding="utf-8")
    shutil.copytree(DOCS / "pictures", BUILT / "pages" / "pictures")
    (BUILT / "pages" / "atlas").mkdir()
    shutil.copy(DOCS / "atlas" / "index.html", BUILT / "pages" / "atlas")
    for page in sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ELSEWHERE)]):
        place = BUILT / "pages" / _place(page)
        place.parent.mkdir(exist_ok=True)
        place.write_text(with_links_of_the_site(page.read_text(encoding="utf-8"), page), encoding="utf-8")
    for name, text in reference():
        (BUILT / "pages" / "api" / name).write_text(text, encoding="utf-8")

    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean"], cwd=BUILT, check=False)
    if built.returncode:
        return built.returncode
    dead = sorted(dead_links(BUILT / "html"))
    for link in dead:
        print(f"dead link: {link}", file=sys.stderr)
    print(f"{len(list((BUILT / 'html').rglob('*.html')))} pages in {BUILT / 'html'}, {len(dead)} dead links")
    return 1 if dead else 0


def _place(page: Path) -> str:
    """Where a page of the repository stands on the site."""
    return page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else ELSEWHERE[page.name]


def with_links_of_the_site(text: str, page: Path) -> str:
    """The page with its links leading to the site's pages and pictures, and what has no page there as its path."""

    def led(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not name:
            return match[0]
        path = (page.parent / unquote(name)).resolve()
        from_here = Path(_place(page)).parent
        if path.suffix == ".md" and (path.is_relative_to(DOCS) or (path.name in ELSEWHERE and path.parent == ROOT)):
            place = Path(os.path.relpath(_place(path), from_here)).as_posix()
            return f"{picture}[{words}]({place}{'#' + anchor if anchor else ''})"
        if path.is_relative_to(DOCS / "pictures") or path == DOCS / "atlas" / "index.html":
            return f"{picture}[{words}]({Path(os.path.relpath(path.relative_to(DOCS), from_here)).as_posix()})"
        return words if words.startswith("`") else f"{words} (`{path.relative_to(ROOT).as_posix()}`)"

    return _LINK.sub(led, text)


def reference() -> Iterator[tuple[str, str]]:
    """A page for each room that has public names, and one that lists them all."""
    rooms: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, module in weightdecay._PUBLIC.items():
        rooms[module.split(".")[1]].append((name, f"{module}.{name}"))
    for name in ("rules", "schedules"):
        rooms[name] = [(name, f"weightdecay.{name}")]

    listed = ["# The library", "", "Every public name. `weightdecay.NAME` is how to import it."]
    for room, title in ROOMS.items():
        if room not in rooms:
            continue
        listed += ["", f"## [{title}]({room}.md)", ""]
        listed += [f"- [`{name}`][{path}]" for name, path in sorted(rooms[room])]
        yield f"{room}.md", "\n".join([f"# {title}", *(f"\n::: {path}" for _, path in sorted(rooms[room]))]) + "\n"
    assert rooms.keys() <= ROOMS.keys(), rooms.keys() - ROOMS.keys()
    yield "index.md", "\n".join(listed) + "\n"


class _Page(HTMLParser):
    """The anchors of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.anchors.add(value)
            if (tag, key) in {("a", "href"), ("img", "src"), ("script", "src"), ("link", "href")} and value:
                self.targets.append(value)


def dead_links(site: Path) -> Iterator[str]:
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of a server's root
            continue
        for target in page.targets:
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:|//", target) or target.startswith("data:"):
                continue
            linked = (path.parent / unquote(name)).resolve() if name else path
            linked = linked / "index.html" if linked.is_dir() else linked
            known = pages.get(linked)
            if not linked.exists() or (anchor and known and unquote(anchor) not in known.anchors):
                yield f"{path.relative_to(site)}: {target}"


if __name__ == "__main__":
    sys.exit(main())
