"""Mixtures of adapters and of networks, exact before the rank is cut.

    from weightgen.compose import compose, load, save

    mixed = compose([load("adapter-a"), load("adapter-b")], method="ties", rank=8)
    save(mixed, "mixed")

Methods are files in ``weightgen/compose/methods``; learned ones minimise an objective of
``weightgen.compose.objectives`` or your own.
"""

from weightgen.compose.registry import Objective, get_method, method_names
from weightgen.compose.run import Composition, compose, load, save

__all__ = ["Composition", "Objective", "compose", "get_method", "load", "method_names", "save"]
