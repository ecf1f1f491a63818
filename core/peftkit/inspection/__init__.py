"""What a person looks at before a run: examples as the model is given them, and the modules of a model."""

from peftkit.inspection.data import Fate, Look, Seen, look
from peftkit.inspection.modules import ModelView, Refusal, TargetMatch, inspect_model
from peftkit.inspection.tokens import TokenPiece, token_pieces
from peftkit.inspection.tree import Branch

__all__ = [
    "Branch",
    "Fate",
    "Look",
    "ModelView",
    "Refusal",
    "Seen",
    "TargetMatch",
    "TokenPiece",
    "inspect_model",
    "look",
    "token_pieces",
]
