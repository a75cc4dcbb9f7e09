"""Processes that train together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from zoo.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """How many processes train together.

    Attributes:
        devices: processes on a processor, or devices of an accelerator.
        strategy: of the trainer: ``ddp`` copies the model, ``fsdp`` shares it out (accelerators only).
        accelerator: ``cpu``, ``gpu`` or ``auto``.
    """

    devices: int = 1
    strategy: str = "auto"
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise UsageError(f"cannot train on {self.devices} devices", "give --devices 1 or more")
        if self.strategy not in ("auto", "ddp", "fsdp"):
            raise UsageError(f"unknown strategy {self.strategy!r}", "give --strategy ddp or fsdp")

    @property
    def trainer(self) -> dict[str, Any]:
        """Arguments of the trainer. A stage need not use all parameters that it trains in every step."""
        several = "ddp" if self.strategy == "auto" and self.devices > 1 else self.strategy
        chosen = "ddp_find_unused_parameters_true" if several == "ddp" and self.devices > 1 else several
        return {"devices": self.devices, "strategy": chosen, "accelerator": self.accelerator}


ALONE = Processes()


def is_first() -> bool:
    """Whether this process is the one that writes files, of those that train together."""
    return int(os.environ.get("LOCAL_RANK", "0")) == int(os.environ.get("NODE_RANK", "0")) == 0
