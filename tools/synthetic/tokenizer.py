"""The byte-level BPE tokenizer of the bundled model: every byte has a token, digits stand alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from peftkit import files
from peftkit.errors import PeftkitError

END, PAD = "<|end|>", "<|pad|>"
CONTEXT = 1024


def _texts(corpus: Path, prompts: Path | None, repeats: int) -> Iterator[str]:
    """Yield the corpus, then the training tables below `prompts` line by line, `repeats` times."""
    for line in files.read_lines(corpus / "train.jsonl"):
        yield json.loads(line)["text"]
    sources = sorted(prompts.rglob("train*.csv")) if prompts else []
    for source in sources:
        yield from files.read_lines(source) * repeats


def train_tokenizer(
    corpus: Path, output: Path, vocabulary: int = 2048, prompts: Path | None = None, repeats: int = 10
) -> int:
    """Train on `corpus`/train.jsonl and write a folder that transformers loads; return the size of the vocabulary.

    The files train*.csv below `prompts` are read `repeats` times over: their attributes (`priceRange`) occur nowhere
    else and would fall apart into many tokens.
    Byte-level BPE: Sennrich et al. 2016, arXiv:1508.07909, over bytes as in Radford et al. 2019.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocabulary < 258:
        raise PeftkitError(
            f"a vocabulary of {vocabulary} is too small: 256 bytes and 2 special tokens need at least 258."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus, prompts, repeats), trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    with files.new_folder(output, replace=True) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        files.write_json(folder / "tokenizer_config.json", settings)
    return tokenizer.get_vocab_size()
