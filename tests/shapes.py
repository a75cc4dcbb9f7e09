"""The type checker that tests put around every function: shapes of tensors and all other annotations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

T = TypeVar("T", bound=Callable[..., object])

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is fine where a float is asked for


def check(function: T) -> T:
    """Check arguments and result of a function at each call.

    Args:
        function: any function or class.

    Returns:
        The checked function; unchanged if Python cannot test one of its annotations at run time, as with the class of
        a protocol.
    """
    try:
        return _checked(function)
    except BeartypeDecorHintException:
        return function
