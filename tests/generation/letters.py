"""A tokenizer of one character an id, and what transformers' own decoding gives."""

from __future__ import annotations

from typing import Any

import torch

PROMPTS = [[5, 6, 7], [11], [40, 41, 42, 43, 44, 45, 46, 47, 48], [9, 9], [60, 30, 20, 10, 5], [77, 76]]


class Letters:
    """Id 3 is chr(35), and so on; 0 pads, 1 begins, 2 ends."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def decode(self, ids, **_):
        return "".join(chr(32 + id) for id in ids if id > 2)


def alone(model: Any, prompt: list[int], new: int, ends: tuple[int, ...]) -> list[int]:
    """Decode one prompt without a cache, the whole text through the model for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


def by_transformers(model: Any, prompt: list[int], ends: tuple[int, ...], **settings: Any) -> tuple[list[int], bool]:
    """Return the answer of transformers' `generate` without its end, and whether it has one."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, eos_token_id=list(ends), **settings
    )[0, len(prompt) :].tolist()
    at = next((at for at, id in enumerate(found) if id in ends), None)
    return found[:at], at is not None
