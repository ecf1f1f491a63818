"""The pretraining corpus: documents of every genre, drawn by weight, each written from its own seed."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from peftkit import files
from synthetic.genres import GENRES

DOCUMENTS = 120_000
VALIDATION = 1_000


def write_documents(count: int, seed: int, split: str) -> list[str]:
    """Return `count` documents; the same `seed` and `split` always give the same ones."""
    writers = dict(GENRES.items())
    names = list(writers)
    weights = [weight for weight, _ in writers.values()]
    rng = Random(f"{seed}/{split}")
    drawn = rng.choices(names, weights, k=count)
    return [writers[name][1](Random(f"{seed}/{split}/{at}")) for at, name in enumerate(drawn)]


def write_corpus(output: Path, documents: int = DOCUMENTS, seed: int = 0) -> dict[str, int]:
    """Write train.jsonl and validation.jsonl, one {"text": …} a line; return the characters of each."""
    sizes = {}
    for split, count in (("train", documents), ("validation", min(VALIDATION, max(1, documents // 10)))):
        texts = write_documents(count, seed, split)
        files.write_text(
            output / f"{split}.jsonl", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        )
        sizes[split] = sum(map(len, texts))
    return sizes
