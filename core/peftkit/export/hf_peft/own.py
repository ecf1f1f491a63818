"""The model's own parameters in a folder of Hugging Face peft: modules saved whole, and what is added to a table.

`modules_to_save` and embeddings beside an adapter lie there under the module's name. They are read as `full` with these
modules as its targets, where they are not the base's own; rows of single tokens and low-rank pairs of an embedding are
put into its table. Its opening gives a module that shares its weight a copy of its own, which is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftkit.adaptation import Part
from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import PREFIX, Config, Tensors
from peftkit.layout import Layout, own_parameters
from peftkit.method import Method
from peftkit.methods.full import Full

SAVED = re.compile(r"(?P<path>.+?)(\.base_layer|\.modules_to_save(\.default)?)?\.(?P<kind>weight|bias)")
TOKENS = "token_adapter.trainable_tokens_delta"
TABLE = ("lora_embedding_A", "lora_embedding_B")


class Owned:
    """What a folder says of the model's own parameters, by their names, and the tensors that are left of it."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout):
        self.config, self.layout = config, layout
        self.base = {name: parameter.detach() for name, parameter in own_parameters(layout.model)}
        self.whole: Tensors = {}
        self.left = dict(tensors)
        for key, tensor in tensors.items():
            if self._saved(key.removeprefix(PREFIX), tensor):
                del self.left[key]
        self._put_tokens()
        self._put_pairs()

    def _saved(self, key: str, tensor: Tensor) -> bool:
        """Keep a tensor that is one of the model's own; biases beside an adapter are the method's to read."""
        match = SAVED.fullmatch(key)
        if match is None or match["path"] not in self.layout.modules:
            return False
        if match["kind"] == "bias" and self.config.get("bias", "none") != "none":
            return False
        self._keep(match["path"], match["kind"], tensor)
        return True

    def _keep(self, path: str, kind: str, tensor: Tensor) -> None:
        name, module = f"{path}.{kind}", self.layout.modules[path]
        own = getattr(module, kind, None)
        if own is None or tensor.shape != own.shape:
            wanted = "none there" if own is None else f"{list(own.shape)} in this model"
            raise PeftkitError(
                f"adapter_model.safetensors: {name} has the shape {list(tensor.shape)}, and it is {wanted}: another "
                "base, or a vocabulary that was made larger."
            )
        if torch.equal(tensor.to(own), own):
            return
        if name not in self.base or self.layout.tied(module):
            raise PeftkitError(
                f"adapter_model.safetensors: {name} was trained apart from the weight that it shares with another "
                "module, which one weight cannot be here."
            )
        self.whole[name] = tensor.float()

    def _table(self) -> tuple[str, Tensor]:
        """Return the name and the values of the input embedding."""
        name = f"{self.layout.embedding().path}.weight"
        return name, self.whole.get(name, self.base[name].float())

    def _put_tokens(self) -> None:
        """Put trained rows into the embedding, and into a head that shares its weight with it."""
        chosen = self.config.get("trainable_token_indices")
        keys = [key for key in self.left if key.endswith(f".{TOKENS}")]
        if not chosen and not keys:
            return
        indices = chosen if isinstance(chosen, list) else next(iter(chosen.values()), []) if chosen else []
        name, table = self._table()
        if len(keys) != 1 or f"{PREFIX}{name.removesuffix('weight')}{TOKENS}" != keys[0]:
            raise PeftkitError(
                "adapter_config.json: trainable_token_indices is set, and only those of the input embedding are read."
            )
        rows = self.left.pop(keys[0]).float()
        fits = rows.shape == (len(indices), table.shape[1])
        if not fits or max(indices, default=0) >= len(table):
            raise PeftkitError(
                f"adapter_model.safetensors: {keys[0]} has the shape {list(rows.shape)}, and trainable_token_indices "
                f"names {len(indices)} rows of {list(table.shape)}."
            )
        self.whole[name] = table.clone().index_put((torch.tensor(indices),), rows)

    def _put_pairs(self) -> None:
        """Add a pair A [rank, rows], B [width, rank] to the embedding."""
        keys = [key for key in self.left if key.endswith(TABLE)]
        if not keys:
            return
        name, table = self._table()
        stem = f"{PREFIX}{name.removesuffix('weight')}"
        if sorted(keys) != [f"{stem}{key}" for key in TABLE]:
            raise PeftkitError(f"adapter_model.safetensors: of {min(keys)} only a pair of the input embedding is read.")
        if self.layout.tied(self.layout.embedding().module):
            raise PeftkitError(
                f"adapter_model.safetensors: {min(keys)} changes the embedding and not the head that shares its weight."
            )
        if self.config.get("alpha_pattern") or self.config.get("rank_pattern") or self.config.get("use_dora"):
            raise PeftkitError(
                f"adapter_model.safetensors: {min(keys)} beside alpha_pattern, rank_pattern or use_dora is not read."
            )
        down, up = (self.left.pop(f"{stem}{key}").float() for key in TABLE)
        rank = down.shape[0] if down.ndim else 0
        if not rank or down.shape != (rank, len(table)) or up.shape != (table.shape[1], rank):
            raise PeftkitError(
                f"adapter_model.safetensors: the pair of the embedding has the shapes {list(down.shape)} and "
                f"{list(up.shape)}, and [rank, {len(table)}], [{table.shape[1]}, rank] are wanted."
            )
        scale = float(self.config["lora_alpha"]) / (rank**0.5 if self.config.get("use_rslora") else rank)
        self.whole[name] = table + scale * (up @ down).T

    def methods(self) -> list[tuple[Method, Tensors]]:
        """Return the method that has the parameters, with its state; none where all are the base's."""
        if not self.whole:
            return []
        paths = sorted({name.rpartition(".")[0] for name in self.whole})
        method = Full(targets=tuple(paths))
        names = [name for name in self.base if method.select(self.layout, name, torch.nn.Parameter())]
        return [(method, {f"own/{name}": self.whole.get(name, self.base[name].float()) for name in names})]


def is_part(part: Part) -> bool:
    """Say whether a part trains modules of the model that it names."""
    return isinstance(part.method, Full) and part.method.targets != "all"


def told(part: Part, layout: Layout) -> tuple[Config, Tensors]:
    """Return what says there that the modules of such a part are saved whole; PeftkitError for shared weights."""
    state = {key.removeprefix("own/"): tensor.detach() for key, tensor in part.tensors()}
    paths = sorted({name.rpartition(".")[0] for name in state})
    tied = next((path for path in paths if layout.tied(layout.modules[path])), None)
    if tied is not None:
        raise PeftkitError(
            f"{part.method.name}: {tied} shares its weight with another module, and Hugging Face peft would change it "
            "in one of them alone: export with --format merged."
        )
    return {"modules_to_save": paths}, {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
