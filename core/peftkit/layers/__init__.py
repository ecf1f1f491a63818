"""Trainable pieces that several methods build from."""
