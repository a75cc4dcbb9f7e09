"""Whole networks: any state dict, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo import formats, infer_architecture, pretrained
from zoo.kinds import ORIGIN, TOLERANCE, Found, Kind, close, parse_json, register
from zoo.naming import module_of
from zoo.specs import specs
from zoo.types import Layout, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.architectures import UnitGroup

MAX_INVARIANT = 10_000_000
DEFAULT_FILE = "model.safetensors"
_NORM_PARTS = ("norm", "bn", "ln")


def layout(
    tensors: Mapping[str, Tensor], *, architecture: Mapping[str, Any] | None = None, base_model: str | None = None
) -> Layout:
    """Describe a state dict.

    Args:
        tensors: values by name, in execution order.
        architecture: JSON description of the network, kept in ``Layout.config["architecture"]``.
        base_model: model that the tensors belong to, if they are a part or a fine-tune of one.

    Returns:
        The layout; normalisation layers have the roles ``norm_weight`` and ``norm_bias``.

    Raises:
        BadArtefact: if a tensor has a type that cannot be stored.
    """
    with_statistics = {module_of(name) for name in tensors if name.endswith("running_mean")}
    parts = {}
    for name, tensor in tensors.items():
        module, role = module_of(name), name.rpartition(".")[2]
        norm = module in with_statistics or any(part in module.rpartition(".")[2].lower() for part in _NORM_PARTS)
        parts[name] = module, f"norm_{role}" if norm and role in ("weight", "bias") and tensor.ndim == 1 else role
    config = {} if architecture is None else {"architecture": dict(architecture)}
    return Layout("dense", base_model, specs(tensors, parts), config)


def layout_of(architecture: Mapping[str, Any]) -> Layout:
    """Layout of a network that has no weights yet.

    Raises:
        UsageError: if the architecture cannot be built.
    """
    from zoo.networks import skeleton

    return layout(skeleton(architecture).state_dict(), architecture=architecture)


def from_state_dict(
    state: Mapping[str, Tensor], *, architecture: Mapping[str, Any] | None = None, base_model: str | None = None
) -> Weights:
    """Weights of a network from its state dict; arguments as in ``layout``."""
    return Weights(layout(state, architecture=architecture, base_model=base_model), dict(state))


@register
class Dense(Kind):
    """State dicts in safetensors, PyTorch and numpy files."""

    name: ClassVar[str] = "dense"
    order: ClassVar[int] = 1000

    def matches(self, path: Path) -> bool:
        """Whether the file has a format that ``zoo.formats`` reads."""
        return path.is_file() and formats.detect(path) is not None

    def read(self, path: Path, *, root: Path | None = None) -> Found:
        """Read one file, or all shards of an index; see ``Kind.read``."""
        source = formats.read_tensors(path, root=root)
        data, config, notes = pretrained.read(path, root or path.parent)
        result = found(_described(from_state_dict(source.tensors), config), source)
        kept = {} if data is None else {pretrained.CONFIG_FILE: data}
        return Found(result.weights, {**result.extra_files, **kept}, (*result.notes, *notes))

    def write(self, weights: Weights, folder: Path, extra_files: Mapping[str, bytes] | None = None) -> None:
        """Write the file or shards it came from; see ``Kind.write``."""
        write(weights, folder, extra_files)

    def canonical(self, weights: Weights) -> Weights:
        """Hidden units in the order, with the signs and scales of ``zoo.unit_order``, where the groups are known."""
        groups = groups_of(weights.layout)
        if not groups:
            return weights
        from zoo.unit_order import in_order

        return Weights(weights.layout, in_order(weights.tensors, groups))

    def invariant(self, weights: Weights) -> float | None:
        """Norm of all tensors, for networks of known groups that are not large; see ``Kind.invariant``."""
        if weights.layout.numel > MAX_INVARIANT or not (groups := groups_of(weights.layout)):
            return None
        scaled = any(group.maps or any(gauge.positive for gauge in group.gauges) for group in groups)
        tensors = (self.canonical(weights) if scaled else weights).tensors
        return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5

    def function_config(self, layout: Layout) -> dict[str, Any]:
        """The configuration without what is provenance in a ``config.json``; see ``Kind.function_config``."""
        said = dict(layout.config)
        if isinstance(said.get("pretrained"), dict):
            said["pretrained"] = pretrained.function_of(said["pretrained"])
        architecture = said.get("architecture")
        if isinstance(architecture, dict) and isinstance(architecture.get("config"), dict):
            said["architecture"] = {**architecture, "config": pretrained.function_of(architecture["config"])}
        return said

    def same_function(self, a: Weights, b: Weights) -> bool:
        """Whether canonical forms agree, also where rounded scales have brought near units into another order."""
        one, other = self.canonical(a).tensors, self.canonical(b).tensors
        groups = groups_of(a.layout)
        if _same(one, other, groups):
            return True
        from zoo.symmetry import align

        return _same(one, align(other, one, groups), groups)


def _described(weights: Weights, config: Mapping[str, Any] | None) -> Weights:
    """Put what a ``config.json`` says into the layout: an architecture where it is known, else the content itself."""
    if config is None:
        return weights
    shapes = {spec.name: spec.shape for spec in weights.layout.tensors}
    architecture = infer_architecture.infer(shapes, config)
    said = {"pretrained": dict(config)} if architecture is None else {"architecture": architecture}
    return Weights(replace(weights.layout, config=said), weights.tensors)


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], groups: Sequence[UnitGroup]) -> bool:
    """Whether canonical tensors agree; of heads the products do, as nearly equal singular values turn the factors."""
    from zoo import head_maps

    products = head_maps.covered(a, groups)
    rest = {name: tensor for name, tensor in a.items() if name not in products}
    return close(rest, b) and all(head_maps.same_products(a, b, group, TOLERANCE) for group in groups)


def groups_of(layout: Layout) -> Sequence[UnitGroup]:
    """Interchangeable units of a network, from the architecture it declares or, if it declares none, from its names.

    Returns:
        The groups; none if the architecture is not known or does not fit the tensors.
    """
    shapes = {spec.name: spec.shape for spec in layout.tensors}
    architecture = layout.config.get("architecture") or infer_architecture.infer(shapes)
    if not isinstance(architecture, Mapping):
        return ()
    return infer_architecture.groups_of(architecture, shapes) or ()


def found(weights: Weights, source: formats.TensorFile) -> Found:
    """What a kind of single files answers: the weights, and how to write the files again."""
    files = [{"name": info.name, "metadata": dict(info.metadata), "names": list(info.names)} for info in source.files]
    if source.index is None:
        del files[0]["names"]
    origin = {"files": files, "index": list(source.index) if source.index else None}
    return Found(weights, {ORIGIN: json.dumps(origin).encode()}, source.notes)


def write(weights: Weights, folder: Path, extra_files: Mapping[str, bytes] | None = None) -> None:
    """Write the file or shards that ``found`` describes, or one file of a default name; see ``Kind.write``."""
    extra = dict(extra_files or {})
    files = (formats.FileInfo(DEFAULT_FILE, {"format": "pt"}, tuple(weights.tensors)),)
    index = None
    if ORIGIN in extra:
        origin = parse_json(extra.pop(ORIGIN), ORIGIN)
        files = tuple(
            formats.FileInfo(info["name"], info["metadata"], tuple(info.get("names", weights.tensors)))
            for info in origin["files"]
        )
        index = origin["index"]
    formats.write_tensors(folder, weights.tensors, files, index)
    for name, data in extra.items():
        (folder / name).write_bytes(data)
