"""Write what pycocoevalcap and sacrebleu say of `texts.json`, with `java` on the path: `python produce.py`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Score the texts and print the figures, in full precision, as JSON."""
    texts = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
    tokenizer = PTBTokenizer()
    hypotheses = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(texts["hypotheses"])})
    references = tokenizer.tokenize(
        {i: [{"caption": text} for text in group] for i, group in enumerate(texts["references"])}
    )
    with redirect_stdout(sys.stderr):
        bleu, _ = Bleu(4).compute_score(references, hypotheses)
    streams = [list(stream) for stream in zip(*texts["references"], strict=True)]
    figures = {
        "METEOR": Meteor().compute_score(references, hypotheses)[0],
        "ROUGE-L": Rouge().compute_score(references, hypotheses)[0],
        "CIDEr": Cider().compute_score(references, hypotheses)[0],
        **{f"coco_BLEU-{order}": value for order, value in enumerate(bleu, 1)},
        "TER": TER().corpus_score(texts["hypotheses"], streams).score,
        "chrF": CHRF().corpus_score(texts["hypotheses"], streams).score,
    }
    print(json.dumps({key: float(value) for key, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
