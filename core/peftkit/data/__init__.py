"""From data files to batches: examples, templates, tokens with label masks, micro-batches."""
