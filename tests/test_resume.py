"""Training state on disk: whatever a trainer keeps comes back with its types, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from weightgen.resume import SafetensorsIO
from zoo.errors import BadArtefact


def test_training_state_survives_the_disk(tmp_path: Path) -> None:
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "betas": (0.9, None)}, 1: {}},
        "list": [1, 2.5, "x", True, None, (), [], {"a": (1, (2,))}],
        "inf": float("inf"),
        "tensors": (torch.randn(2, 3, dtype=torch.float64), torch.zeros(0, 4), torch.tensor([True]), torch.arange(3)),
        "view": torch.arange(6).view(2, 3).T,
        ("tuple", 1): "key",
    }
    path = tmp_path / "deep" / "codec.state"
    SafetensorsIO().save_checkpoint(tree, path)
    again = SafetensorsIO().load_checkpoint(path)

    def compare(a: Any, b: Any) -> None:
        assert type(a) is type(b)
        if isinstance(a, Tensor):
            assert a.dtype == b.dtype
            assert a.equal(b)
        elif isinstance(a, dict):
            assert list(a) == list(b)
            for key in a:
                compare(a[key], b[key])
        elif isinstance(a, list | tuple):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                compare(x, y)
        else:
            assert a == b

    compare(tree, again)
    assert [p.name for p in path.parent.iterdir()] == ["codec.state"]
    SafetensorsIO().remove_checkpoint(path)
    SafetensorsIO().remove_checkpoint(path)
    assert not path.exists()


def test_training_state_that_cannot_be_kept_or_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(TypeError, match="set"):
        SafetensorsIO().save_checkpoint({"a": {1, 2}}, path)
    assert not any(tmp_path.iterdir())
    SafetensorsIO().save_checkpoint({"a": torch.ones(3)}, path)
    for damage in (b"", path.read_bytes()[:-1], b"x" * 100, path.read_bytes().replace(b'{\\"tensor', b'{\\"tensr_')):
        (tmp_path / "damaged").write_bytes(damage)
        with pytest.raises(BadArtefact):
            SafetensorsIO().load_checkpoint(tmp_path / "damaged")
    with pytest.raises(BadArtefact):
        SafetensorsIO().load_checkpoint(tmp_path / "missing")
