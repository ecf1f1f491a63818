"""One file per template; each registers itself."""
