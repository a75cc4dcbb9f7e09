"""The small JSON that names the models of a fusion and how they are fused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from zoo.errors import BadArtefact

FILE = "config.json"
PROMPT_ROLES = ("strong", "expert", "anchor", "small")


class WeakToStrongConfig(PretrainedConfig):
    """Config of a fusion.

    Args:
        strong: id or folder; ``None`` if the model was given loaded and has neither.
        experts: pairs of references; a task sum is a mapping of experts to weights.
        rule: name of the fusion rule.
        settings: settings of the rule.
        prompts: own prompts by role.
        shared: run adapters and their base in one batch.
        **kwargs: what every config of transformers takes.
    """

    model_type = "weightgen_weak_to_strong"

    def __init__(
        self,
        strong: Any = None,
        experts: list[Any] | None = None,
        rule: str = "dynamic",
        settings: dict[str, Any] | None = None,
        prompts: dict[str, Any] | None = None,
        shared: bool = True,
        vocab_size: int = 0,
        **kwargs: Any,
    ) -> None:
        self.strong = strong
        self.experts = experts or []
        self.rule = rule
        self.settings = settings or {}
        self.prompts = prompts or {}
        self.shared = shared
        self.vocab_size = vocab_size
        super().__init__(**kwargs)

    def write(self, folder: str | Path) -> None:
        """Write the JSON; it appears whole or not at all."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        keys = ("strong", "experts", "rule", "settings", "prompts", "shared")
        data = {"model_type": self.model_type, **{key: getattr(self, key) for key in keys}}
        side = place / f".{FILE}"
        side.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        side.rename(place / FILE)

    @classmethod
    def read(cls, folder: str | Path) -> WeakToStrongConfig:
        """Read the JSON of a folder.

        Raises:
            BadArtefact: if there is none.
        """
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            data = {}
        if data.pop("model_type", None) != cls.model_type:
            raise BadArtefact(f"{folder} holds no fusion", "make one with WeakToStrong(...).save_pretrained(folder)")
        return cls(**data)
