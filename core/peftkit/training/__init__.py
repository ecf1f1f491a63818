"""Training: from a recipe to a run folder that holds the adapter and everything about how it came to be."""

from peftkit.training.observer import Observer, Silent
from peftkit.training.session import train
from peftkit.training.signals import Interrupted
from peftkit.training.summary import Summary

__all__ = ["Interrupted", "Observer", "Silent", "Summary", "train"]
