"""Saved results, as one page of tables and plots; nothing is computed but means over tasks and seeds."""
