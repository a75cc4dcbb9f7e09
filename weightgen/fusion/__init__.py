"""Fusion rules: how the logits of a strong model and of small experts become one distribution.

A rule is one file in this folder with a registered pure function. For every row it is given the logits of the strong
model M, of k experts E_t and of their anchors S_t (the small models that the experts were tuned from), all over the
same tokens, and returns fused logits and the weight it gave to each expert. Everything around it (caches, vocabularies,
prompts) is in :mod:`weightgen.decode`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.config import StrictConfig, parse_config
from zoo.errors import UsageError

CHUNK_ELEMENTS = {"cpu": 1 << 18}
"""Logits a model that are fused at a time; a processor is fastest while they stay in its cache."""
LARGEST_CHUNK = 1 << 24


class Fused(NamedTuple):
    """What a rule returns.

    Attributes:
        logits: fused logits; only their softmax has a meaning.
        alphas: weight of each expert.
    """

    logits: Float[Tensor, "b v"]
    alphas: Float[Tensor, "b k"]


class RuleFunction(Protocol):
    """A rule; ``evidence`` is what the text so far says for each expert, log-probability of expert minus anchor."""

    def __call__(
        self,
        strong: Float[Tensor, "b v"],
        experts: Sequence[Float[Tensor, "b v"]],
        anchors: Sequence[Float[Tensor, "b v"]],
        config: Any,
        evidence: Float[Tensor, "b k"] | None,
    ) -> Fused: ...


@dataclass(frozen=True)
class Rule:
    """A registered rule.

    Attributes:
        name: what users write.
        config: class of its settings.
        function: the rule.
        needs_evidence: whether it reads ``evidence``.
    """

    name: str
    config: type[StrictConfig]
    function: RuleFunction
    needs_evidence: bool = False


_RULES: dict[str, Rule] = {}


def rule(name: str, config: type[StrictConfig], needs_evidence: bool = False) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule under a name; use as a decorator.

    Args:
        name: what users write.
        config: class of its settings.
        needs_evidence: whether it reads the evidence of the text so far.

    Returns:
        The decorator, which leaves the function as it is.
    """

    def register(function: RuleFunction) -> RuleFunction:
        _RULES[name] = Rule(name, config, function, needs_evidence)
        return function

    return register


def rules() -> Mapping[str, Rule]:
    """All rules by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_RULES.items()))


def find_rule(name: str, settings: Mapping[str, Any] | None = None) -> tuple[Rule, StrictConfig]:
    """A rule and its checked settings.

    Args:
        name: name of the rule.
        settings: values that differ from the defaults.

    Returns:
        The rule and its config.

    Raises:
        UsageError: if there is no such rule, or a setting is unknown or out of its range.
    """
    known = rules()
    if name not in known:
        raise UsageError(f"there is no fusion rule {name!r}", f"choose one of: {', '.join(known)}")
    found = known[name]
    return found, parse_config(settings or {}, found.config, source=f"rule {name!r}")


def fuse(
    name: str,
    strong: Float[Tensor, "*b v"],
    experts: Sequence[Float[Tensor, "*b v"]],
    anchors: Sequence[Float[Tensor, "*b v"]],
    evidence: Float[Tensor, "*b k"] | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "*b v"], Float[Tensor, "*b k"]]:
    """Fuse logits by a named rule; the short way to use a rule alone.

    Args:
        name: name of the rule.
        strong: logits of the strong model.
        experts: logits of each expert over the same tokens.
        anchors: logits of each expert's anchor.
        evidence: log-probability of the text so far, expert minus anchor, for rules that use it.
        **settings: settings of the rule.

    Returns:
        Fused logits and the weight of each expert; float64 for float64 logits, else float32.

    Raises:
        UsageError: if the rule or a setting is not known, or the experts and anchors do not match.
    """
    found, config = find_rule(name, settings)
    return apply_rule(found, config, strong, experts, anchors, evidence)


def apply_rule(
    found: Rule,
    config: StrictConfig,
    strong: Float[Tensor, "*b v"],
    experts: Sequence[Float[Tensor, "*b v"]],
    anchors: Sequence[Float[Tensor, "*b v"]],
    evidence: Float[Tensor, "*b k"] | None = None,
) -> tuple[Float[Tensor, "*b v"], Float[Tensor, "*b k"]]:
    """Apply a rule to logits of any batch shape, in float32 at least and in parts that fit in memory.

    Raises:
        UsageError: if the experts and anchors do not match.
    """
    if len(experts) != len(anchors):
        raise UsageError(f"{len(experts)} experts have {len(anchors)} anchors", "give each expert its anchor")
    dtype = torch.float64 if strong.dtype == torch.float64 else torch.float32
    if not experts:
        return strong.to(dtype), strong.new_zeros(*strong.shape[:-1], 0, dtype=dtype)
    shape, count = strong.shape[:-1], len(experts)

    def flat(logits: Tensor) -> Tensor:
        return logits.reshape(-1, strong.shape[-1]).to(dtype)

    if evidence is None:
        evidence = strong.new_zeros(*shape, count, dtype=dtype)
    weights = evidence.reshape(-1, count).to(dtype)
    rows = max(1, CHUNK_ELEMENTS.get(strong.device.type, LARGEST_CHUNK) // strong.shape[-1])
    if weights.shape[0] <= rows:
        fused = found.function(flat(strong), [flat(x) for x in experts], [flat(x) for x in anchors], config, weights)
        return fused.logits.view(strong.shape), fused.alphas.view(*shape, count)
    logits, alphas = strong.new_empty(strong.shape, dtype=dtype), strong.new_empty(*shape, count, dtype=dtype)
    flat_logits, flat_alphas = logits.view(-1, strong.shape[-1]), alphas.view(-1, count)
    views = [x.reshape(-1, x.shape[-1]) for x in (strong, *experts, *anchors)]
    for start in range(0, weights.shape[0], rows):
        part = slice(start, start + rows)
        own, *small = [view[part].to(dtype) for view in views]
        fused = found.function(own, small[:count], small[count:], config, weights[part])
        flat_logits[part], flat_alphas[part] = fused
    return logits, alphas
