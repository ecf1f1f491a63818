"""One file per storage format of frozen weights."""
