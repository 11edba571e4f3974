"""Make the atlas: docs/atlas/atlas.json.xz from what is recorded, and docs/atlas/index.html, one page with all of it.

python docs/make_atlas.py           both; a few minutes of one core, no network, no model is built
python docs/make_atlas.py page      the page alone, from the data as they lie there
"""

from __future__ import annotations

import base64
import json
import lzma
import sys
import zlib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "atlas"
DATA, PAGE = FOLDER / "atlas.json.xz", FOLDER / "index.html"


def write_data(document: dict[str, Any]) -> None:
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    DATA.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def read_data() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(lzma.decompress(DATA.read_bytes()))
    return content


def page(document: dict[str, Any]) -> str:
    """One file: style, script and the data, which a browser unpacks by itself."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    parts = {
        "style": (FOLDER / "page.css").read_text("utf-8").strip(),
        "script": (FOLDER / "page.js").read_text("utf-8").strip(),
        "data": base64.b64encode(zlib.compress(text.encode(), 9)).decode(),
    }
    made = (FOLDER / "page.html").read_text("utf-8")
    for name, part in parts.items():
        made = made.replace("{{" + name + "}}", part)
    return made


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["page"]):
        print(__doc__, file=sys.stderr)
        return 2
    if not arguments:
        from atlas_rows import document

        write_data(document())
    PAGE.write_text(page(read_data()), encoding="utf-8")
    print(f"{DATA.name}: {DATA.stat().st_size:,} bytes; {PAGE.name}: {PAGE.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
