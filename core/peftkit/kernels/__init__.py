"""Functions on tensors with a backward of their own; torch and NumPy are all they need."""
