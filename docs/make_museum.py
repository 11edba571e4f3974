"""Draw the table that `make museum` prints.

python docs/make_museum.py
"""

from __future__ import annotations

import subprocess
import sys

from figures import DOCS, PICTURES


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "examples.museum", "--svg", str(PICTURES / "museum.svg")]
    subprocess.run(command, check=True, cwd=DOCS.parent)


if __name__ == "__main__":
    main()
