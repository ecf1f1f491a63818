"""The contracts by which a method attaches to a model, one file for each kind of place."""
