"""Rebuild what the project writes itself: `python -m synthetic corpus|tokenizer|bundled --output DIR` in tools/."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peftkit.errors import PeftkitError
from synthetic.corpus import DOCUMENTS, write_corpus
from synthetic.sets import SETS
from synthetic.tokenizer import train_tokenizer

BUNDLED = Path(__file__).resolve().parents[2] / "core/peftkit/data/bundled"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m synthetic", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="write the pretraining corpus")
    corpus.add_argument("--output", type=Path, default=Path("build/corpus"))
    corpus.add_argument("--documents", type=int, default=DOCUMENTS)
    corpus.add_argument("--seed", type=int, default=0)
    tokenizer = commands.add_parser("tokenizer", help="train the tokenizer on the corpus and the bundled data sets")
    tokenizer.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    tokenizer.add_argument("--output", type=Path, default=Path("build/tokenizer"))
    tokenizer.add_argument("--vocabulary", type=int, default=2048)
    bundled = commands.add_parser("bundled", help="write the bundled data sets, in the official formats")
    bundled.add_argument("--output", type=Path, default=BUNDLED)
    bundled.add_argument("--seed", type=int, default=0)
    bundled.add_argument("--only", choices=SETS.names(), help="write this set alone")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one of the commands and print what was written."""
    given = _parser().parse_args(arguments)
    if given.command == "corpus":
        for split, size in write_corpus(given.output, given.documents, given.seed).items():
            print(f"{given.output / split}.jsonl: {size:,} characters")
    elif given.command == "tokenizer":
        size = train_tokenizer(given.corpus, given.output, given.vocabulary, BUNDLED)
        print(f"{given.output}: {size} tokens")
    else:
        for name, write in SETS.items():
            if given.only in (None, name):
                write(given.output / name, given.seed)
                print(given.output / name)


if __name__ == "__main__":
    try:
        main()
    except PeftkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
