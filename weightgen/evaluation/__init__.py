"""Evaluation that is honest to a fault: every result beside the simplest alternatives."""
