"""The type checker that tests put around every function: jaxtyping shapes, and an int wherever a float is asked for."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
