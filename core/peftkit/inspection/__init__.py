"""What a person looks at before a run: a recipe's examples as the model is given them."""

from peftkit.inspection.data import Fate, Look, Seen, look
from peftkit.inspection.tokens import TokenPiece, token_pieces

__all__ = ["Fate", "Look", "Seen", "TokenPiece", "look", "token_pieces"]
