"""How many threads torch uses, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use this many threads inside the ``with`` block; 0 leaves torch's own choice.

    Small networks train fastest on one thread as soon as anything else runs on the machine: threads that wait for each
    other at every small operation cost more than they bring (measured: 4 times slower beside one busy process).
    """
    import torch

    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
