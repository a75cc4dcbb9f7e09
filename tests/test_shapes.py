"""The shape checks of the test suite are on: without this, a broken import hook would pass unseen."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from zoo.types import Tokens


def test_tokens_of_unequal_shape_are_refused() -> None:
    values, position = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.long)
    Tokens(values, torch.zeros(3, 4, dtype=torch.bool), position)
    with pytest.raises(TypeCheckError, match="mask"):
        Tokens(values, torch.zeros(3, 5, dtype=torch.bool), position)
    with pytest.raises(TypeCheckError, match="position"):
        Tokens(values, torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.long))
