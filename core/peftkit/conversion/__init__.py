"""Configurations of other tools as recipes: one file a tool, and every key without counterpart told."""

from __future__ import annotations

from peftkit.conversion.convert import Converted, convert
from peftkit.conversion.tool import TOOLS, Tool

__all__ = ["TOOLS", "Converted", "Tool", "convert"]
