"""Codecs: weights as tokens to latents and back."""
