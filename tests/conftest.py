"""What all tests share: repeatable random numbers, and shapes checked wherever an annotation states them."""

from __future__ import annotations

import importlib
import random
import typing

import jaxtyping
import numpy as np
import pytest
import torch

from tests import shapes

# Before anything of ours is imported: every annotation is checked at each call, shapes of tensors included.
jaxtyping.install_import_hook(["zoo", "weightgen"], f"{shapes.__name__}.check")

# The core types name tensors only for type checkers, to stay light. Here the names are real, so that they are checked.
typing.TYPE_CHECKING = True
importlib.import_module("zoo.types")
typing.TYPE_CHECKING = False

from tests.fixtures import tiny_generator, tiny_zoo  # noqa: E402 - after the hook, so that what it imports is checked
from tests.serving import connect  # noqa: E402
from tests.text_world import adapter_zoo, text_encoder, text_tasks  # noqa: E402

__all__ = ["adapter_zoo", "connect", "text_encoder", "text_tasks", "tiny_generator", "tiny_zoo"]

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(0)
