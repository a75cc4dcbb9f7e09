"""Conditioners: what the user knows about a task, as vectors."""
