"""Checkpoints in the layouts of GPTQ and AWQ, written from dense weights by rounding to the nearest code."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

BITS, GROUP = 4, 16
SHIFTS = BITS * torch.arange(8)


def rounded(weight, group=GROUP):
    """Return codes [in, out], zero points and steps [groups, out] of `weight` [out, in], and what they stand for."""
    blocks = weight.T.unflatten(0, (-1, group))
    low, high = blocks.amin(1).clamp(max=0), blocks.amax(1).clamp(min=0)
    steps = ((high - low) / 15).half().float()
    zeros = (-low / steps).round().clamp(1, 15)
    codes = (blocks / steps.unsqueeze(1) + zeros.unsqueeze(1)).round().clamp(0, 15)
    meant = ((codes - zeros.unsqueeze(1)) * steps.unsqueeze(1)).flatten(0, 1).T.contiguous()
    return codes.flatten(0, 1).int(), zeros.int(), steps.half(), meant


def words(codes):
    """Put 8 codes of the last dimension into one word, the first one lowest."""
    return (codes.unflatten(-1, (-1, 8)).long() << SHIFTS).sum(-1).to(torch.int32)


def gptq(weight):
    """Return the tensors of a GPTQ layer, whose zero points are stored less one, and the weight that they stand for."""
    codes, zeros, steps, meant = rounded(weight)
    tensors = {"qweight": words(codes.T).T.contiguous(), "qzeros": words(zeros - 1), "scales": steps}
    return tensors | {"g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP}, meant


def awq(weight):
    """Return the tensors of an AWQ layer, which interleaves the columns of a word, and the weight they stand for."""
    codes, zeros, steps, meant = rounded(weight)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    mixed = (value.unflatten(-1, (-1, 8))[..., order].flatten(-2) for value in (codes, zeros))
    return dict(zip(("qweight", "qzeros"), map(words, mixed), strict=True)) | {"scales": steps}, meant


CONFIGS = {
    "gptq": {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": False},
    "awq": {"quant_method": "awq", "bits": BITS, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}


def write(model, folder, layout):
    """Save `model` into `folder` with the linear layers of its blocks in a layout; returns their weights by path."""
    model.save_pretrained(folder)
    tensors, meant = {}, {}
    for name, value in model.state_dict().items():
        path, _, kind = name.rpartition(".")
        if kind == "weight" and value.dim() == 2 and ".layers." in name:
            packed, meant[path] = {"gptq": gptq, "awq": awq}[layout](value)
            tensors |= {f"{path}.{key}": tensor for key, tensor in packed.items()}
        else:
            tensors[name] = value.half()
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "float16", "quantization_config": CONFIGS[layout]}
    (folder / "config.json").write_text(json.dumps(config))
    return meant
