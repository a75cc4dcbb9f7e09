"""The prior of IGPG: a causal language model of transformers over the words of networks.

It reads the condition as a prefix, and knows of every word before it writes it where it will stand: layer, role, row,
chunk and code, and the shape of the tensor. Words are embedded, and scored, by what they stand for too, so that similar
words need not be learned one by one. Lines longer than the context are written in windows, each after the condition
and the end of the window before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2Model, LlamaConfig, LlamaModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from weightgen.conditioners.joint import ConditionTokens
from weightgen.generators.line import Line, Vocabulary
from weightgen.nn import PositionEmbedding
from zoo.config import StrictConfig

WAVES = 16
ATTENTION = "eager"
"""The fused kernels of torch take several times as long as plain products on short lines on processors, backwards."""
PREFIX = 512
"""Condition tokens that a model with learned positions has room for."""


class PriorConfig(StrictConfig):
    """The language model, and how it learns."""

    family: Literal["llama", "gpt2"] = "llama"
    depth: int = Field(default=3, ge=1)
    feed_forward: int = Field(default=256, ge=8, description="width of the feed-forward layers")
    context: int = Field(default=1024, ge=2, description="words that a window holds")
    overlap: int = Field(default=256, ge=1, description="words of the window before that a window begins with")
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    reorder: float = Field(default=0.2, ge=0, le=1, description="share of batches with some layers first, for filling")
    bfloat16: bool = Field(default=True, description="matrix products in training")
    word_size: float = Field(default=1.0, gt=0, description="what words stand for at first, as a share of the codec's")
    learn_words: bool = Field(default=False, description="what words stand for is learned too, from there on")

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap >= self.context:
            raise ValueError(f"an overlap of {self.overlap} words leaves nothing new in a window of {self.context}")
        return self


class SamplingConfig(StrictConfig):
    """How words are drawn."""

    temperature: float = Field(default=0.5, gt=0)
    top_k: int = Field(default=0, ge=0, description="most likely words that are drawn from; 0: all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="likelihood that is drawn from, the most likely first")
    guidance: float = Field(default=1.0, ge=0, description="1 is plain conditional sampling, 0 unconditional")

    def warper(self) -> Callable[[Tensor], Tensor]:
        """The same as a function of logits, by the processors of transformers in their order."""
        found = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        none: Any = None  # these processors do not look at the words before
        return lambda logits: found(none, logits)


def windows(length: int, context: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """First word read, first word written, and end of every window over a line."""
    start, done = 0, 0
    while done < length:
        stop = min(start + context, length)
        yield start, done, stop
        start, done = stop - overlap, stop


def draw(logits: Float[Tensor, "*n v"], uniform: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Words by inversion of their distribution: the same uniform numbers always give the same words."""
    total = logits.double().softmax(-1).cumsum(-1)
    wanted = (uniform.double() * total[..., -1])[..., None]
    return torch.searchsorted(total, wanted, right=True)[..., 0]


class Prior(nn.Module):
    """Probabilities of words, given the words before and a condition."""

    vectors: Tensor

    def __init__(
        self,
        config: PriorConfig,
        width: int,
        heads: int,
        positions: tuple[int, int, int, int],
        vocabulary: Vocabulary,
        slots: int,
        dim: int,
    ) -> None:
        """Make the model, untrained.

        Args:
            config: sizes.
            width: of hidden states and of condition tokens.
            heads: of attention.
            positions: number of layers, roles, rows and chunks that occur.
            vocabulary: all words.
            slots: codes a token.
            dim: size of the vectors that words stand for.
        """
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.register_buffer("vectors", torch.zeros(len(vocabulary), dim))
        self.moved = nn.Parameter(torch.zeros(len(vocabulary), dim)) if config.learn_words else None
        self.word = nn.Embedding(len(vocabulary) + 1, width)  # the last one stands before the first word
        nn.init.normal_(self.word.weight, std=0.1)
        self.word_of_vector = nn.Linear(dim, width, bias=False)
        self.position = PositionEmbedding(positions, width)
        self.slot = nn.Embedding(slots, width)
        nn.init.normal_(self.slot.weight, std=0.1)
        self.shape = nn.Linear(3 * WAVES, width)
        self.place = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.before = nn.Linear(width, width, bias=False)
        self.of_class = nn.Linear(width, width)
        self.unconditional = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.body = _body(config, width, heads)
        self.head = nn.Linear(width, len(vocabulary))
        self.head_of_vector = nn.Linear(width, dim)
        for layer in (self.head, self.head_of_vector):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def meaning(self) -> Float[Tensor, "v g"]:
        """What every word stands for."""
        return self.vectors if self.moved is None else self.vectors + self.moved

    @torch.no_grad()
    def keep_meaning(self) -> Float[Tensor, "v g"]:
        """Make what was learned of words the start of what follows, and return it."""
        self.vectors.copy_(self.meaning)
        if self.moved is not None:
            self.moved.zero_()
        return self.vectors

    def nothing(self, condition: ConditionTokens, where: Bool[Tensor, " b"]) -> ConditionTokens:
        """The condition with nothing known in some rows."""
        tokens = torch.where(where[:, None, None], self.unconditional, condition.tokens)
        return ConditionTokens(tokens, condition.mask, condition.classes)

    def forward(
        self, words: Int[Tensor, "b n"], line: Line, condition: ConditionTokens, start: int = 0, stop: int | None = None
    ) -> Float[Tensor, "b m v"]:
        """Logits of the words of a window, each given the words before it.

        Args:
            words: the line; only words before the last of the window are read.
            line: places of the words.
            condition: prefix.
            start: first word of the window.
            stop: end of the window; by default the end of the line.
        """
        stop = len(line) if stop is None else stop
        with torch.autocast(words.device.type, torch.bfloat16, enabled=self.config.bfloat16 and self.training):
            own = self._own(line, condition)
            inputs = self._inputs(words, own, start, stop)
            hidden = self._run(inputs, condition, None)[:, -(stop - start) :]
        return self._logits(hidden.float(), line.book[start:stop])

    def write(
        self,
        line: Line,
        condition: ConditionTokens,
        uniform: Float[Tensor, "b n"],
        sampling: SamplingConfig,
        given: Int[Tensor, "b k"] | None = None,
    ) -> Int[Tensor, "b n"]:
        """Draw lines word by word, with the model's own cache of keys and values.

        Args:
            line: places of the words.
            condition: ``b`` tasks.
            uniform: one number in [0, 1) a word; it decides the result.
            sampling: how words are drawn.
            given: the first words of the lines, if they are known.
        """
        rows, guided = len(uniform), sampling.guidance != 1
        words = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)
        known = 0 if given is None else given.shape[1]
        if given is not None:
            words[:, :known] = given
        if guided:
            both = torch.arange(2 * rows, device=uniform.device) >= rows
            twice = ConditionTokens(condition.tokens.repeat(2, 1, 1), condition.mask.repeat(2, 1), condition.classes)
            condition = self.nothing(twice, both)
        warp, own = sampling.warper(), self._own(line, condition)
        for start, first, stop in windows(len(line), self.config.context, self.config.overlap):
            first, cache = max(first, known), None
            for i in range(first, stop):
                lines = words.repeat(2, 1) if guided else words
                if cache is None:
                    cache = DynamicCache(config=self.body.config)
                    hidden = self._run(self._inputs(lines, own, start, i + 1), condition, cache)
                else:
                    hidden = self._run(self._inputs(lines, own, i, i + 1), condition, cache)
                logits = self._logits(hidden[:, -1:], line.book[i : i + 1])[:, 0]
                if guided:  # arXiv 2207.12598, on log-probabilities
                    bound, free = logits.log_softmax(-1).split(rows)
                    logits = torch.where(bound.isinf(), bound, free + sampling.guidance * (bound - free))
                words[:, i] = draw(warp(logits), uniform[:, i])
        return words

    def embed(
        self, words: Int[Tensor, "b n"], vectors: Float[Tensor, "b n g"], line: Line, condition: ConditionTokens
    ) -> Float[Tensor, "b n h"]:
        """Words, what they stand for, and where they stand."""
        return self.word(words) + self.word_of_vector(vectors) + self._own(line, condition)

    def _own(self, line: Line, condition: ConditionTokens) -> Float[Tensor, "#b n h"]:
        """What is known of every place before its word is written: where it is, and its class."""
        waves = get_timestep_embedding(10 * line.shape.reshape(-1), WAVES, flip_sin_to_cos=True, max_period=1000)
        shape = self.shape(waves.view(len(line), -1))
        place = self.place(self.position(line.position) + self.slot(line.slot) + shape)
        before = F.pad(self.before(place), (0, 0, 1, 0))[:-1]  # where the word before stands
        own = (place + before)[None]
        has_class = line.class_of >= 0
        if condition.classes and bool(has_class.any()):
            of_class = self.of_class(condition.tokens[:, : condition.classes])
            chosen = of_class[:, line.class_of.clamp(0, condition.classes - 1)]
            own = own + chosen * has_class[:, None]
        return own

    def _inputs(
        self, words: Int[Tensor, "b n"], own: Float[Tensor, "#b n h"], start: int, stop: int
    ) -> Float[Tensor, "b m h"]:
        """The word before, and the place of the word to write."""
        last = words[:, max(start - 1, 0) : stop - 1]
        embedded = self.word(last) + self.word_of_vector(self.meaning[last])
        if start == 0:
            nothing = self.word.weight[-1].expand(len(words), 1, -1)
            embedded = torch.cat([nothing, embedded], 1)
        return embedded + own[:, start:stop]

    def _run(
        self, inputs: Float[Tensor, "b m h"], condition: ConditionTokens, cache: DynamicCache | None
    ) -> Float[Tensor, "b _ h"]:
        """Hidden states; a first call without keys in the cache reads the condition before the inputs."""
        seen = 0 if cache is None else cache.get_seq_length()
        if not seen:
            inputs = torch.cat([condition.tokens.to(inputs.dtype), inputs], 1)
        mask = None
        if not bool(condition.mask.all()):
            mask = F.pad(condition.mask, (0, seen + inputs.shape[1] - condition.mask.shape[1]), value=True).long()
        run = self.body(inputs_embeds=inputs, attention_mask=mask, past_key_values=cache, use_cache=cache is not None)
        return run.last_hidden_state

    def _logits(self, hidden: Float[Tensor, "b m h"], book: Int[Tensor, " m"]) -> Float[Tensor, "b m v"]:
        logits = self.head(hidden) + self.head_of_vector(hidden) @ self.meaning.T
        return self.vocabulary.restrict(logits, book)


def _body(config: PriorConfig, width: int, heads: int) -> LlamaModel | GPT2Model:
    """The language model without embeddings of words, which are ours."""
    shared: dict[str, Any] = {
        "vocab_size": 1,
        "attn_implementation": ATTENTION,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.family == "gpt2":
        return GPT2Model(
            GPT2Config(
                n_positions=PREFIX + config.context,
                n_embd=width,
                n_layer=config.depth,
                n_head=heads,
                n_inner=config.feed_forward,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **shared,
            )
        )
    return LlamaModel(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.depth,
            num_attention_heads=heads,
            max_position_embeddings=PREFIX + config.context,
            **shared,
        )
    )
