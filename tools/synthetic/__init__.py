"""Text and data sets that the project writes itself through grammars: the pretraining corpus and the bundled sets."""
