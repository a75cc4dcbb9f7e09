"""Weights as data: read, check, canonicalise, tokenise, store and build zoos of trained networks."""
