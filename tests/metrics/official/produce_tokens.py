"""Write anew what the official program makes of the texts of `tokens.json`: `python produce_tokens.py`."""

from __future__ import annotations

import json
from pathlib import Path

from peftkit.metrics import ptb

FILE = Path(__file__).resolve().parent / "tokens.json"


def main() -> None:
    """Keep the texts, and write the program's tokens beside them."""
    texts = [fixture["text"] for fixture in json.loads(FILE.read_text(encoding="utf-8"))]
    with ptb.treebank_tokens(official=True):
        found = ptb.tokenize_lines(texts)
    fixtures = ({"text": text, "tokens": tokens} for text, tokens in zip(texts, found, strict=True))
    lines = (json.dumps(fixture, ensure_ascii=False) for fixture in fixtures)
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
