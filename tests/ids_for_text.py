"""A tokenizer without a vocabulary, for tests of generation that give ids and compare ids."""

from __future__ import annotations


class Ends:
    """A tokenizer of which generation asks for its special tokens and the text of answers alone."""

    bos_token_id, eos_token_id, pad_token_id = None, None, 0

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def batch_decode(self, rows, **_):
        return [self.decode(ids) for ids in rows]
