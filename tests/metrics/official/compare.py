"""Print how many texts of data sets are tokenized otherwise than by the program: `compare.py FOLDER [DRAWN]`."""

from __future__ import annotations

import sys
from pathlib import Path

from drawn_lines import draw, texts
from test_program import differences

SETS = ("e2e", "webnlg", "coqa", "gsm8k")


def main(folder: Path, count: int) -> None:
    """Compare the texts of each set, then `count` lines drawn from E2E's and from WebNLG's."""
    found = {name: texts(folder / name) for name in SETS}
    for name in ("e2e", "webnlg"):
        found[f"{name}, drawn"] = draw(found[name], count, seed=len(name))
    for name, lines in found.items():
        print(f"{name:16}{len(lines):>9,} lines {len(differences(lines)):>6,} differ", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6000)
