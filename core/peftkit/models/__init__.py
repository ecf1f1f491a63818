"""Base models: loading, random tiny ones, the bundled one, and what tells one from another."""
