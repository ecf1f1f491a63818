"""Kinds of subject with their properties; a module registers what it describes."""
