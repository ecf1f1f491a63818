"""What a person looks at before a run: examples as the model is given them, a model's modules, methods of their own."""

from peftkit.inspection.data import Fate, Look, Seen, look
from peftkit.inspection.method_check import Finding, check_method, own_methods
from peftkit.inspection.modules import ModelView, Refusal, TargetMatch, inspect_model
from peftkit.inspection.tokens import TokenPiece, token_pieces
from peftkit.inspection.tree import Branch

__all__ = [
    "Branch",
    "Fate",
    "Finding",
    "Look",
    "ModelView",
    "Refusal",
    "Seen",
    "TargetMatch",
    "TokenPiece",
    "check_method",
    "inspect_model",
    "look",
    "own_methods",
    "token_pieces",
]
