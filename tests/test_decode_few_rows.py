"""Linear layers over a few rows: the same numbers, read in another way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightgen.decode.few_rows import FewRows, few_rows


@pytest.mark.parametrize("shape", [(2, 1, 300), (1, 5, 300), (1, 300), (9, 300), (300,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_layers_give_the_same(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    layer = nn.Linear(300, 250, bias=bias).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        plain = layer(x)
        with FewRows():
            quick = layer(x)
    assert quick.shape == plain.shape
    assert quick.dtype == plain.dtype
    assert torch.allclose(quick, plain, atol=1e-5)


def test_it_is_only_on_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append(b.shape) or torch.mm(a, b))
    layer = nn.Linear(300, 250)
    for tokens, used in ((1, 0), (4, 1), (8, 0)):
        seen.clear()
        with torch.no_grad(), few_rows(torch.zeros(1, tokens, dtype=torch.long)):
            layer(torch.randn(tokens, 300))
        assert len(seen) == used
    with few_rows(torch.zeros(1, 4, dtype=torch.long)):  # training keeps the usual product
        layer(torch.randn(4, 300))
    assert not seen
