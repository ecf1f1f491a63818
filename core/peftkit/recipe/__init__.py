"""Recipes: YAML files, checked by models, that say a whole experiment."""

from __future__ import annotations

from peftkit.recipe.base_sections import (
    CalibrationSection,
    FormatChoice,
    MethodChoice,
    ModelSection,
    QuantizationSection,
)
from peftkit.recipe.catalogue import shipped
from peftkit.recipe.compose import part_names
from peftkit.recipe.data_section import DatasetSection
from peftkit.recipe.loading import load, load_run, on_own_base
from peftkit.recipe.quantized import BASE
from peftkit.recipe.schema import schema
from peftkit.recipe.scoring_sections import CompareSection, EvalSection, GenerationSection
from peftkit.recipe.sections import Recipe, TrainSection
from peftkit.recipe.sweep import load_sweep

__all__ = [
    "BASE",
    "CalibrationSection",
    "CompareSection",
    "DatasetSection",
    "EvalSection",
    "FormatChoice",
    "GenerationSection",
    "MethodChoice",
    "ModelSection",
    "QuantizationSection",
    "Recipe",
    "TrainSection",
    "load",
    "load_run",
    "load_sweep",
    "on_own_base",
    "part_names",
    "schema",
    "shipped",
]
