"""Parameter-efficient fine-tuning of language models: every method behind one interface."""

__version__ = "0.1.0"
