"""Compose: parents in, one adapter or network out, with a receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightgen.compose.adapters import check_together, mixed_saved, read_adapter, write_adapter
from weightgen.compose.networks import read_network, same_tensors, unit_groups, write_network
from weightgen.compose.registry import Method, Mixture, Objective, Problem, get_method
from zoo import kinds, safefile
from zoo.config import dump_config, parse_config
from zoo.errors import UsageError
from zoo.export import export_files
from zoo.sidecar import read_about
from zoo.store import hash_tensors
from zoo.types import Weights

RECEIPT = "weightgen.json"


@dataclass(frozen=True, eq=False)
class Composition:
    """A mixture.

    Attributes:
        weights: the adapter (a plain LoRA of scaling 1 in the form of PEFT) or the network.
        receipt: JSON values: parents, method, settings, weights, errors, what was learned.
        coefficients: learned or given factors by tensor name, one a parent or one a parent and output.
    """

    weights: Weights
    receipt: Mapping[str, Any]
    coefficients: Mapping[str, Tensor]


def load(path: Path | str) -> Weights:
    """Read an adapter folder or a network file; what lies beside a network says its architecture.

    Raises:
        BadArtefact: if it is no known kind of weights, or damaged.
    """
    path = Path(path)
    weights = kinds.read(path).weights
    if (architecture := read_about(path).architecture) and weights.layout.kind == "dense":
        config = {**weights.layout.config, "architecture": architecture}
        return Weights(replace(weights.layout, config=config), weights.tensors)
    return weights


def save(composition: Composition, out: Path | str) -> list[Path]:
    """Write a mixture and its receipt (``weightgen.json``) into a new or empty folder, whole or not at all.

    Returns:
        The files.

    Raises:
        UsageError: if the folder is in use.
    """
    receipt = {RECEIPT: (json.dumps(dict(composition.receipt), indent=1) + "\n").encode()}
    return export_files(composition.weights, receipt, Path(out))


def compose(
    parents: Sequence[Weights],
    method: str = "linear",
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    base: Weights | None = None,
    objective: Objective | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Composition:
    """Mix LoRA adapters of one base, or networks of one architecture.

    The order of the parents does not matter: they are brought into one order of their own before anything is computed.

    Args:
        parents: what to mix, at least one.
        method: a name of ``method_names()``.
        weights: one number a parent; by default shares of 1, or 1 each, as the method states.
        rank: rank of the resulting adapter; by default the smallest that loses nothing.
        base: the network that the parents were fine-tuned from; for networks only.
        objective: what learned methods minimise: a function from the changes of the base's tensors (by name, dense
            float32) to a scalar; see ``weightgen.compose.objectives``.
        settings: of the method.
        seed: decides every random number.
        names: what messages and the receipt call the parents.

    Returns:
        The mixture.

    Raises:
        UsageError: if the parents do not fit together or to the method, or an argument cannot be used.
        BadArtefact: if a parent holds values that are not finite.
    """
    chosen = get_method(method)
    names = [f"parent {i}" for i in range(len(parents))] if names is None else list(names)
    if not parents or len(names) != len(parents):
        raise UsageError(
            f"{len(parents)} parents and {len(names)} names", "give one parent or more, and a name for each"
        )
    shares = _weights(weights, len(parents), chosen)
    config = parse_config(dict(settings or {}), chosen.config, source=f"settings of the method {method}")
    adapters = parents[0].layout.kind != "dense"
    _check(parents, chosen, adapters, rank, base, names)
    hashes = [hash_tensors(parent.tensors) for parent in parents]
    order = sorted(range(len(parents)), key=lambda i: (hashes[i], shares[i]))
    ordered = _Parents(
        [parents[i] for i in order],
        [names[i] for i in order],
        [shares[i] for i in order],
        [f"{hashes[i]}/{[hashes[j] for j in order[:place]].count(hashes[i])}" for place, i in enumerate(order)],
    )
    run = _compose_adapters if adapters else _compose_networks
    made, mixture, extra = run(ordered, chosen, config, rank, base, objective, seed)
    safefile.check_finite(made.tensors, "the mixture")
    back = torch.tensor([order.index(i) for i in range(len(parents))])
    coefficients = {name: value[back] for name, value in mixture.coefficients.items()}
    receipt = {
        "description": f"composed of {len(parents)} {'adapters' if adapters else 'networks'} by the method {method}",
        **({"base_model": made.layout.base_model} if made.layout.base_model else {}),
        **({"architecture": made.layout.config["architecture"]} if "architecture" in made.layout.config else {}),
        "composed": {
            "method": method,
            "settings": dump_config(config),
            "seed": seed,
            "parents": [{"name": names[i], "sha256": hashes[i], "weight": shares[i]} for i in range(len(parents))],
            **extra,
            "report": dict(mixture.report),
            "coefficients": {name: _summary(value) for name, value in coefficients.items()},
        },
    }
    return Composition(made, receipt, coefficients)


@dataclass(frozen=True, eq=False)
class _Parents:
    """Parents in the order of their content."""

    members: Sequence[Weights]
    names: Sequence[str]
    shares: Sequence[float]
    keys: Sequence[str]


def _summary(value: Tensor) -> list[float]:
    """One number a parent: the coefficient, or its mean over outputs."""
    return [round(x, 6) for x in (value if value.ndim == 1 else value.mean(1)).tolist()]


def _weights(weights: Sequence[float] | None, count: int, method: Method) -> list[float]:
    if weights is None:
        return [1 / count if method.mean else 1.0] * count
    shares = [float(w) for w in weights]
    if len(shares) != count:
        raise UsageError(f"{len(shares)} weights for {count} parents", "give one weight a parent")
    if not all(abs(w) < float("inf") for w in shares):
        raise UsageError(f"the weights are {shares}", "give finite numbers")
    return shares


def _check(
    parents: Sequence[Weights],
    method: Method,
    adapters: bool,
    rank: int | None,
    base: Weights | None,
    names: Sequence[str],
) -> None:
    if adapters and not method.adapters:
        raise UsageError(f"the method {method.name} takes networks, {names[0]} is an adapter", "use the method linear")
    if not adapters and not method.networks:
        raise UsageError(
            f"the method {method.name} folds factors into the outputs of adapters, {names[0]} is a network",
            "use the method atlas",
        )
    if rank is not None and (rank < 1 or not adapters):
        cause = f"rank {rank}" if adapters else f"rank {rank} for whole networks"
        raise UsageError(cause, "give a rank of 1 or more, for adapters only")
    if base is not None and adapters:
        raise UsageError("adapters are changes already, a base network cannot be used", "leave the base out")
    for parent, name in zip(parents, names, strict=True):
        safefile.check_finite(parent.tensors, name)


def _compose_adapters(
    parents: _Parents,
    method: Method,
    config: Any,
    rank: int | None,
    base: Weights | None,
    objective: Objective | None,
    seed: int,
) -> tuple[Weights, Mixture, dict[str, Any]]:
    adapters = [read_adapter(weights, name) for weights, name in zip(parents.members, parents.names, strict=True)]
    check_together(adapters)
    saved = mixed_saved(adapters, parents.shares if method.affine else None)
    problem = Problem(
        sources=[adapter.deltas for adapter in adapters],
        weights=torch.tensor(parents.shares, dtype=torch.float64),
        keys=parents.keys,
        adapters=True,
        based=True,
        groups=(),
        objective=objective,
        seed=seed,
    )
    mixture = method.run(problem, config)
    made, cuts = write_adapter(mixture.deltas, rank, adapters, saved)
    norm = sum(cut.norm**2 for cut in cuts.values()) ** 0.5
    lost = sum(cut.error**2 for cut in cuts.values()) ** 0.5
    report = {
        "rank": made.layout.config["peft"]["r"],
        "rank_needed": max(cut.needed for cut in cuts.values()),
        "relative_error": lost / norm if norm else 0.0,
        "relative_error_of": {name: cut.error / cut.norm if cut.norm else 0.0 for name, cut in cuts.items()},
    }
    return made, mixture, report


def _compose_networks(
    parents: _Parents,
    method: Method,
    config: Any,
    rank: int | None,
    base: Weights | None,
    objective: Objective | None,
    seed: int,
) -> tuple[Weights, Mixture, dict[str, Any]]:
    deltas = [read_network(one, base, name) for one, name in zip(parents.members, parents.names, strict=True)]
    same_tensors(parents.members, parents.names)
    problem = Problem(
        sources=deltas,
        weights=torch.tensor(parents.shares, dtype=torch.float64),
        keys=parents.keys,
        adapters=False,
        based=base is not None,
        groups=unit_groups(parents.members[0]),
        objective=objective,
        seed=seed,
    )
    mixture = method.run(problem, config)
    like = next((p for p in parents.members if "architecture" in p.layout.config), parents.members[0])
    start = None if base is None else hash_tensors(base.tensors)
    return write_network(mixture.deltas, base, like), mixture, {"base_sha256": start}
