"""Weak-to-strong decoding: a strong model steered by small experts, as one transformers model."""
