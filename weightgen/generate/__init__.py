"""The ``generate`` job: what is known about a task in, checked weights out."""
