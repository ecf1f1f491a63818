"""A tokenizer of one token a byte, so that label masks can be written down by hand as text."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


def build(
    *, bos: bool = False, chat: str | None = None, merges: tuple[tuple[str, str], ...] = (), eos: str | None = "<eos>"
):
    """Return a byte-level tokenizer; `bos` makes it put <bos> in front of a text, `merges` are pairs of its symbols."""
    symbols = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>" if bos else None, eos_token=eos)
    fast.pad_token = "<pad>"
    fast.chat_template = chat
    return fast


def masked(row, tokenizer) -> list[tuple[str, bool]]:
    """Return an encoded row as runs of (text, trained); labels must be the ids themselves or -100."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(row.ids, row.labels, strict=True):
        assert label in (token, -100)
        if not runs or runs[-1][1] != (label != -100):
            runs.append(([], label != -100))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids), trained) for ids, trained in runs]
