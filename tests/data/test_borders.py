"""Where a text is split whatever stands on the other side: the ids of rows are those of whole texts."""

from __future__ import annotations

import itertools
import random

import pytest
from byte_tokenizer import SPECIAL, build
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from peftkit.data import borders, special
from peftkit.data.encode import Piece, tokenize_pieces
from peftkit.models.tokenizer import load_tokenizer
from peftkit.recipe import ModelSection

PARTS = ("\n", "\n", " ", "  ", "a", "The ", "7", "42", "'s", ".", "é", "\u0301", "\u2028", "<eos>", "x\n", "?\nIt", "")
"""Of what random texts are made."""
WORDS = list(enumerate(borders.WORDS))
STEPS = {
    "gpt-2": [],
    "digits": [pre_tokenizers.Digits(individual_digits=True)],
    **{
        f"words-{number}": [pre_tokenizers.Split(Regex(words), "isolated")]
        for number, words in enumerate(borders.WORDS)
    },
}


def trained(steps, use_regex, **added):
    """Return a byte-level tokenizer with merges over whatever its steps leave together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=list(SPECIAL))
    draw = random.Random(1)
    tokenizer.train_from_iterator(["".join(draw.choices(PARTS, k=12)) for _ in range(300)], trainer)
    tokenizer.add_tokens([AddedToken(text, **how) for text, how in added.items()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def words(tokenizer, text):
    return [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def tokenizer_of(name):
    if name == "bundled":
        return load_tokenizer(ModelSection(name="bundled/tiny"))
    return trained(STEPS[name], "words" not in name)


@pytest.mark.parametrize("name", [*STEPS, "bundled"])
def test_rows_are_those_of_whole_texts(name, monkeypatch):
    tokenizer, draw = tokenizer_of(name), random.Random(2)
    assert borders.known(tokenizer)
    texts = ["".join(draw.choices(PARTS, k=draw.randrange(5))) for _ in range(1800)]
    pairs = [pair for pair in itertools.pairwise(texts) if borders.between(*pair)]
    assert len(pairs) > 20
    for before, after in pairs:
        assert words(tokenizer, before + after) == words(tokenizer, before) + words(tokenizer, after)
    pieces = [Piece(text, draw.random() < 0.5, draw.random() < 0.2) for text in texts]
    some = [pieces[at : at + 6] for at in range(0, len(pieces), 6)]
    found = tokenize_pieces(some, tokenizer)
    monkeypatch.setattr(borders, "known", lambda tokenizer: False)
    assert tokenize_pieces(some, tokenizer) == found


def test_no_border_is_told_of_a_tokenizer_that_may_join_texts_there():
    assert not borders.known(build())
    assert not borders.known(trained([], True, Hello={"lstrip": True}))
    assert not borders.known(trained([], True, **{"x\ny": {}}))
    assert not borders.known(trained([pre_tokenizers.Split(Regex(r"\n\w|\S+"), "isolated")], False))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert not borders.known(trained([byte_level, pre_tokenizers.Split(Regex(borders.WORDS[0]), "isolated")], False))


def test_ids_are_those_of_a_call_whatever_the_tokenizer_was_called_with_before():
    tokenizer = load_tokenizer(ModelSection(name="bundled/tiny"))
    texts = ["The river.", "", "<|end|> 42\n\né"]
    wanted = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert special.tokenized(texts, tokenizer) == wanted
    tokenizer(texts, padding=True, truncation=True, max_length=2)
    assert special.tokenized(texts, tokenizer) == wanted
    tokenizer.split_special_tokens = True
    assert special.tokenized(texts, tokenizer) == tokenizer(texts, add_special_tokens=False)["input_ids"] != wanted
