"""Base models: loading, random tiny ones, the bundled one, and the fingerprint of each."""
