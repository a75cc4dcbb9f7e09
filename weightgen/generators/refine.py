"""The refinement of IGPG: undoes the rounding to words with all words and the condition in sight.

A causal model cannot know what the words to come will be, and a word stands for one vector only. This network reads the
finished line and adds to every vector a bounded correction, so that the words choose the network and the correction
chooses within the reach of a word.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from weightgen.conditioners.joint import ConditionTokens
from weightgen.nn import transformer
from zoo.config import StrictConfig


class RefineConfig(StrictConfig):
    """Size of the refinement and how far it may go."""

    depth: int = Field(default=0, ge=0, description="layers; 0: networks are what their words stand for")
    reach: float = Field(default=1.0, gt=0, description="largest correction, in deviations of a weight")


class Refinement(nn.Module):
    """Corrects the vectors that words stand for; nothing before it is trained."""

    def __init__(self, config: RefineConfig, width: int, heads: int, dim: int) -> None:
        """Make the network.

        Args:
            config: sizes.
            width: of the embeddings of words and of condition tokens.
            heads: of attention.
            dim: size of the vectors.
        """
        super().__init__()
        self.config = config
        self.body = transformer(width, config.depth, heads)
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, vectors: Float[Tensor, "b n g"], embedded: Float[Tensor, "b n h"], condition: ConditionTokens
    ) -> Float[Tensor, "b n g"]:
        """Correct vectors.

        Args:
            vectors: what the words stand for.
            embedded: the words and their places.
            condition: what is known about the task.
        """
        missing = None
        if not bool(condition.mask.all()):
            missing = F.pad(~condition.mask, (0, embedded.shape[1]), value=False)
        hidden = self.body(torch.cat([condition.tokens, embedded], 1), src_key_padding_mask=missing)
        change = self.out(hidden[:, condition.tokens.shape[1] :]).float()
        return vectors + self.config.reach * (change / self.config.reach).tanh()
