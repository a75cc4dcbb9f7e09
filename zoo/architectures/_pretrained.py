"""What the families of transformers checkpoints share: ``{"family": "bert", "model": CLASS, "config": {...}}``.

``config`` is the content of ``config.json``; ``model`` the class of transformers, which says what follows the last
hidden states. The groups are read from the configuration alone: nothing is downloaded and no model is made for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo.architectures import Architecture, FreeMap, Gauge, Part
from zoo.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

MAX_SIZE = 1 << 20
MAX_LAYERS = 1 << 10


def fields(architecture: Architecture, models: Sequence[str], base: str = "") -> tuple[str, Mapping[str, Any], str]:
    """Model class, configuration, and the prefix of the tensors below the head.

    Args:
        architecture: as above; its optional ``prefix`` replaces ``base``.
        models: classes of the family, the one without a head first.
        base: prefix in models with a head.

    Raises:
        UsageError: if the class is none of ``models`` or there is no configuration.
    """
    model, config = architecture.get("model"), architecture.get("config")
    if model not in models:
        raise UsageError(f"the model class {model!r} is not supported", f"supported are {', '.join(models)}")
    if not isinstance(config, Mapping):
        raise UsageError(f"the configuration is {config!r}", "give the content of config.json as a mapping")
    return str(model), config, str(architecture.get("prefix", "" if model == models[0] else base))


def number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive size from a configuration.

    Raises:
        UsageError: if it is missing or no sensible size.
    """
    value = config.get(key)
    value = default if value is None else value
    limit = MAX_LAYERS if "layer" in key else MAX_SIZE
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
        raise UsageError(f"{key} of the configuration is {value!r}", f"it must be a number from 1 to {limit}")
    return value


def refuse(config: Mapping[str, Any], *keys: str) -> None:
    """Refuse configurations that switch on what the groups do not cover.

    Raises:
        UsageError: if one of the keys is true.
    """
    for key in keys:
        if config.get(key):
            raise UsageError(f"{key} of the configuration is {config[key]!r}", "this part of the model is not known")


def relu_gauges(
    activation: object, up: tuple[tuple[str, int], ...], down: tuple[tuple[str, int], ...]
) -> tuple[Gauge, ...]:
    """The free scale of units behind a ReLU; none for other activations."""
    return (Gauge(up, down, True),) if activation == "relu" else ()


def build(architecture: Architecture, models: Sequence[str]) -> nn.Module:
    """Freshly initialised model of transformers.

    Raises:
        UsageError: if the class or its configuration is not accepted.
    """
    import transformers

    model, config, _ = fields(architecture, models)
    if "prefix" in architecture:
        raise UsageError("the tensors of this file have other names than the model", "load it with transformers")
    cls = getattr(transformers, model)
    try:
        return cls(cls.config_class(**config))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{model} does not accept the configuration: {error}") from None


def affine(*modules: str) -> tuple[tuple[str, int], ...]:
    """Weight and bias of normalisation layers."""
    return tuple((f"{module}.{name}", 0) for module in modules for name in ("weight", "bias"))


def rows(*modules: str, bias: bool = True) -> tuple[tuple[str, int], ...]:
    """Rows of the matrices and entries of the biases of linear layers."""
    return tuple((f"{module}.{name}", 0) for module in modules for name in ("weight", "bias")[: 1 + bias])


def columns(*modules: str) -> tuple[tuple[str, int], ...]:
    """Columns of the matrices of linear layers."""
    return tuple((f"{module}.weight", 1) for module in modules)


def head_maps(
    query: str, key: str, value: str, output: str, width: int, *, biased: bool = True
) -> tuple[FreeMap, FreeMap]:
    """The free maps of plain attention: neither rotary nor relative positions, and no normalised queries and keys.

    Args:
        query, key, value, output: linear layers; the last one has a bias.
        width: rows of the first three, over all heads.
        biased: whether the first three have biases.
    """

    def rows_of(module: str, name: str) -> Part:
        return Part(f"{module}.{name}", 0, ((0, width),))

    queries = tuple(rows_of(query, name) for name in ("weight", "bias")[: 1 + biased])
    outputs = (Part(f"{output}.weight", 1, ((0, width),)),)
    weights = [(rows_of(module, "weight"),) for module in (key, value)]
    biases = [rows_of(module, "bias") if biased else None for module in (key, value)]
    return FreeMap(queries, weights[0], biases[0]), FreeMap(
        weights[1], outputs, biases[1], f"{output}.bias" if biased else None
    )
