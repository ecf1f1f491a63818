"""A model's configuration, from its folder or from a recipe's `init`, checked to be of a family that works."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from peftkit import families
from peftkit.errors import PeftkitError, hint
from peftkit.models import folder as folders

LAYERS = 2000


def from_folder(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the configuration in `folder`; refuses what no family takes, and foreign code that is not trusted."""
    described = folders.description(folder)
    path, architecture = folder / "config.json", described["model_type"]
    own_code = families.named_in(described.get("auto_map")) is not None
    if architecture not in CONFIG_MAPPING_NAMES and not own_code:
        raise PeftkitError(f"{path}: " + _unknown_architecture(architecture))
    if own_code and architecture not in CONFIG_MAPPING_NAMES and not trust_remote_code:
        raise PeftkitError(
            f"{path}: '{architecture}' needs Python code from its own folder. Read that code, then allow it with "
            "`model.trust_remote_code: true`."
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers and a model's own code raise every kind here
        raise PeftkitError(f"{path} is not a valid configuration: {one_line(error)}") from error
    if not (own_code and trust_remote_code):
        families.check(config, str(path))
    _check_layers(config, str(path))
    return config


def from_init(init: Mapping[str, Any], defaults: Mapping[str, Any]) -> PretrainedConfig:
    """Build the configuration that `init` describes: `architecture` and the keys of its transformers configuration.

    `defaults` (sizes that follow from the tokenizer) hold where `init` is silent. An unknown architecture or key is a
    PeftkitError with the nearest spelling.
    """
    keys = dict(init)
    architecture = str(keys.pop("architecture", ""))
    if architecture not in families.architectures():
        raise PeftkitError("model.init.architecture: " + _unknown_architecture(architecture))
    try:
        blank = AutoConfig.for_model(architecture)
        families.check(blank, "model.init.architecture")
        inner = blank.get_text_config().model_type
        if inner != architecture:
            raise PeftkitError(
                f"model.init.architecture: {architecture} is made of several parts, and random weights are of one "
                f"decoder: describe that of its text ({inner}), or name a checkpoint."
            )
        known = set(blank.to_dict()) | set(blank.attribute_map)
        for key in keys:
            if key not in known:
                raise PeftkitError(
                    f"model.init: '{key}' is not a key of the {architecture} configuration.{hint(key, known)}"
                )
        config = AutoConfig.for_model(architecture, **(dict(defaults) | keys))
        _check_layers(config, "model.init")
    except PeftkitError:
        raise
    except Exception as error:  # each configuration class checks its keys in its own way
        raise PeftkitError(f"model.init is not a valid {architecture} configuration: {one_line(error)}") from error
    return config


def _check_layers(config: PretrainedConfig, where: str) -> None:
    """Refuse more layers than any model has: each is built, without weights, before anything can be compared."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > LAYERS:
        raise PeftkitError(f"{where}: num_hidden_layers: found {layers}; allowed: up to {LAYERS}.")


def one_line(error: Exception) -> str:
    """Return the error's text in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _unknown_architecture(name: str) -> str:
    guess = hint(name, families.architectures())
    return (
        f"'{name}' is not an architecture that this transformers knows.{guess} Examples: llama, qwen3, mistral, gpt2."
    )
