"""Recipe: LoRA adapters of a text encoder, one text classification task each, without a head.

Members with the same number start from the same factors on every task if ``lora.shared_start`` is on.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from zoo import kinds
from zoo.build.encoder import EncoderConfig
from zoo.build.holdout import HoldoutConfig
from zoo.build.registry import register_recipe
from zoo.build.text_recipe import TextRecipe, TextsConfig
from zoo.build.text_training import TextTrainingConfig
from zoo.config import StrictConfig
from zoo.seeds import seed_of
from zoo.types import Weights


class LoraSettings(StrictConfig):
    """The adapter; see the LoraConfig of PEFT."""

    r: int = Field(default=4, ge=1)
    alpha: int = Field(default=8, ge=1)
    target_modules: list[str] = Field(default=["query", "value"], min_length=1)
    shared_start: bool = Field(default=True, description="member k of every task starts from the same factors")


class TextLoraConfig(StrictConfig):
    """The recipe ``text_lora``."""

    recipe: Literal["text_lora"] = "text_lora"
    seed: int = 0
    data: TextsConfig
    tasks: HoldoutConfig = HoldoutConfig()
    encoder: EncoderConfig = EncoderConfig()
    lora: LoraSettings = LoraSettings()
    members_per_task: int = Field(default=2, ge=1)
    training: TextTrainingConfig = TextTrainingConfig()


@register_recipe("text_lora", TextLoraConfig)
class TextLora(TextRecipe):
    """Adapters as PEFT makes and saves them."""

    def __init__(self, config: TextLoraConfig) -> None:
        super().__init__(
            config.data, config.tasks, config.encoder, config.training, config.members_per_task, config.seed
        )
        self.lora = config.lora

    @functools.cached_property
    def _adapted(self) -> Any:
        """The encoder with an adapter around its model; made once, its factors are replaced for every member."""
        from peft import LoraConfig, TaskType, get_peft_model

        settings = LoraConfig(
            r=self.lora.r,
            lora_alpha=self.lora.alpha,
            target_modules=self.lora.target_modules,
            task_type=TaskType.FEATURE_EXTRACTION,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what the libraries plan among themselves
            adapted: Any = get_peft_model(self.encoder.model, settings)
        adapted.peft_config["default"].base_model_name_or_path = self.encoder.base_model
        self.encoder.model = adapted.eval()
        return adapted

    def reset(self) -> None:
        """New factors have B = 0."""
        self.start("base")

    def start(self, lineage: str) -> list[nn.Parameter]:
        """Fresh factors, of the member's number or of its lineage."""
        adapted = self._adapted
        which = lineage.rpartition("/")[2] if self.lora.shared_start else lineage
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "start", which))
            for module in adapted.modules():
                if hasattr(module, "reset_lora_parameters"):
                    module.reset_lora_parameters("default", True)
        return [p for p in adapted.parameters() if p.requires_grad]

    def result(self) -> tuple[Weights, dict[str, bytes]]:
        """What ``save_pretrained`` writes, without the empty model card."""
        with tempfile.TemporaryDirectory() as name:
            self._adapted.save_pretrained(name, save_embedding_layers=False)
            (Path(name) / "README.md").unlink(missing_ok=True)
            found = kinds.read(Path(name))
            tensors = {key: value.clone() for key, value in found.weights.tensors.items()}
        return Weights(found.weights.layout, tensors), dict(found.extra_files)
