"""What is attached to a model: the same for every method."""

from peftkit.adaptation.adaptation import ATTRIBUTE, Adaptation, Attached, attached
from peftkit.adaptation.attach import activate, attach, check_methods, notices, route
from peftkit.adaptation.combine import WAYS, Combined, Source, check_sources, combine
from peftkit.adaptation.counting import count_stored, count_trained
from peftkit.adaptation.description import DESCRIPTION, IMPORTED, OBJECTIVE, describe_adapter
from peftkit.adaptation.folder import (
    TENSORS,
    check_base,
    check_finite,
    digests,
    find_adapter,
    load_adapter,
    load_children,
    save_adapter,
)
from peftkit.adaptation.going_on import check_start, go_on, load_module
from peftkit.adaptation.part import Part

__all__ = [
    "ATTRIBUTE",
    "DESCRIPTION",
    "IMPORTED",
    "OBJECTIVE",
    "TENSORS",
    "WAYS",
    "Adaptation",
    "Attached",
    "Combined",
    "Part",
    "Source",
    "activate",
    "attach",
    "attached",
    "check_base",
    "check_finite",
    "check_methods",
    "check_sources",
    "check_start",
    "combine",
    "count_stored",
    "count_trained",
    "describe_adapter",
    "digests",
    "find_adapter",
    "go_on",
    "load_adapter",
    "load_children",
    "load_module",
    "notices",
    "route",
    "save_adapter",
]
