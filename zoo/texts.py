"""Texts as tensors, so that text data are stored like any other: UTF-8 bytes and where each text ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from zoo.errors import BadArtefact


def pack(texts: Sequence[str], name: str = "text") -> dict[str, Tensor]:
    """Two tensors that hold some texts: ``NAME_bytes`` and ``NAME_ends``; ``unpack`` is the inverse."""
    encoded = [text.encode() for text in texts]
    ends = torch.tensor([len(part) for part in encoded], dtype=torch.int64).cumsum(0)
    joined = b"".join(encoded)
    data = torch.frombuffer(bytearray(joined), dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
    return {f"{name}_bytes": data, f"{name}_ends": ends}


def unpack(tensors: Mapping[str, Tensor], name: str = "text") -> list[str]:
    """The texts that ``pack`` put under a name.

    Raises:
        BadArtefact: if they are not there or damaged.
    """
    try:
        data: UInt8[Tensor, " bytes"] = tensors[f"{name}_bytes"]
        ends: Int[Tensor, " texts"] = tensors[f"{name}_ends"]
        joined, stops = data.numpy().tobytes(), ends.tolist()
        return [joined[a:b].decode() for a, b in zip([0, *stops], stops, strict=False)]
    except (KeyError, UnicodeDecodeError) as error:
        raise BadArtefact(f"the data hold no texts named {name!r} ({error})", "build the zoo again") from None
