"""Groups of interchangeable hidden units of any module, found by torch.fx.

The module is traced symbolically and run once on an example without storage, so that every shape is known, while the
channels of each tensor are followed through it. What is not understood freezes the units it reads: a group may be
missed, but no group is wrong. Attention is among what is not understood; the families of ``zoo.architectures``
declare its heads.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zoo.architectures import UnitGroup
from zoo.errors import UsageError
from zoo.wires import Channels, Wiring

SAME = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, F.dropout, F.dropout2d}
SAME |= {"contiguous", "clone", "detach", "float", "double", torch.clone, operator.pos}
SIGN = {nn.Tanh, nn.Softsign, nn.Tanhshrink, torch.tanh, F.tanh, F.softsign, torch.sin, torch.asinh, "tanh", "sin"}
POSITIVE = {nn.ReLU, nn.LeakyReLU, F.relu, torch.relu, F.leaky_relu, "relu", "relu_"}
POSITIVE |= {nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, F.max_pool1d, F.max_pool2d}
LINEAR = {nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, F.avg_pool1d, F.avg_pool2d}
LINEAR |= {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, nn.Upsample, F.interpolate}
POOLS = {f for f in POSITIVE | LINEAR if "pool" in str(f).lower() or f in (nn.Upsample, F.interpolate)}
OTHER = {nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Mish, nn.SELU}
OTHER |= {nn.CELU, nn.Hardtanh, nn.LogSigmoid, F.gelu, F.silu, torch.sigmoid, F.sigmoid, F.elu, F.relu6, F.hardswish}
OTHER |= {F.softplus, F.mish, F.selu, F.hardtanh, torch.exp, torch.abs, torch.square, "sigmoid", "exp", "abs", "square"}
ELEMENTWISE = SAME | SIGN | POSITIVE | LINEAR | OTHER
SUMS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
PRODUCTS = {operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div"}
CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 1, nn.Conv3d: 1, nn.Linear: -1}
BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
HARMLESS = {"size", "dim", getattr, "numel"}


def trace(module: nn.Module, *example: Tensor) -> tuple[UnitGroup, ...]:
    """Find the groups of interchangeable units of a module.

    Args:
        module: the network; it is neither run nor changed.
        example: inputs of the right shapes, the first axis over examples; values do not matter.

    Returns:
        Groups in the order of execution. Linear and convolution layers, batch and layer normalisation, activations,
        pooling, flattening, residual additions, products, padding, slices and concatenations are followed. Every
        function of the module's outputs is preserved by permuting a group.

    Raises:
        UsageError: if torch.fx cannot trace the module or it does not accept the example.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), []).append(name)
    aliases = {name: tuple(same) for same in names.values() for name in same}
    try:
        graph = fx.symbolic_trace(copy.deepcopy(module).eval())
        tracer = _Tracer(graph.to("meta"), {name: same[0] for name, same in aliases.items()})
        tracer.run(*(torch.empty_like(value, device="meta") for value in example))
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"torch.fx cannot trace {type(module).__name__} ({text})", "declare its groups in a family instead"
        ) from error
    tracer.wiring.never(sorted(tracer.escaped))
    return tracer.wiring.groups(aliases)


class _Tracer(fx.Interpreter):
    """Runs the graph and keeps the channels of every tensor beside it."""

    def __init__(self, graph: fx.GraphModule, first_name: Mapping[str, str]) -> None:
        super().__init__(graph)
        self.wiring = Wiring()
        self.first_name = first_name
        self.escaped: set[str] = set()
        self.channels: dict[fx.Node, Channels | list[Channels | None] | None] = {}
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute the shapes of one node, then follow its channels."""
        value = super().run_node(n)
        self.values[n] = value
        self.channels[n] = self._follow(n, value)
        return value

    def _follow(self, n: fx.Node, value: Any) -> Channels | list[Channels | None] | None:
        if n.op in ("placeholder", "get_attr"):
            return None
        if n.op == "output":
            return self._unknown(n)
        target: Any = type(self.fetch_attr(str(n.target))) if n.op == "call_module" else n.target
        if target in HARMLESS and not isinstance(value, Tensor):
            return None
        rule = self._rule(target)
        known = rule(n, value, target) if rule else None
        return self._unknown(n) if known is None else known

    def _rule(self, target: Any) -> Callable[[fx.Node, Any, Any], Channels | list[Channels | None] | None] | None:
        for rule, targets in (
            (self._linear, CONVOLUTIONS),
            (self._embedding, {nn.Embedding}),
            (self._batch_norm, BATCH_NORMS),
            (self._layer_norm, {nn.LayerNorm, nn.RMSNorm, nn.GroupNorm}),
            (self._elementwise, ELEMENTWISE),
            (self._binary, SUMS | PRODUCTS),
            (self._mean, {torch.mean, "mean"}),
            (self._reshape, {nn.Flatten, torch.flatten, torch.reshape, "flatten", "view", "reshape"}),
            (self._permute, {torch.permute, torch.transpose, "permute", "transpose"}),
            (self._pad, {F.pad, torch.nn.functional.pad}),
            (self._item, {operator.getitem}),
            (self._cat, {torch.cat, torch.concat}),
            (self._split, {torch.chunk, torch.split, "chunk", "split"}),
        ):
            if target in targets:
                return rule
        return None

    def _unknown(self, n: fx.Node) -> None:
        """Freeze whatever a node reads."""
        for source in n.all_input_nodes:
            found = self.channels[source]
            for channels in found if isinstance(found, list) else [found]:
                self.wiring.freeze(channels)
            if source.op == "get_attr":
                self.escaped.add(self._name(str(source.target)))
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            self.escaped |= {self._name(f"{n.target}.{name}") for name, _ in module.named_parameters()}

    def _name(self, name: str) -> str:
        return self.first_name.get(name, name)

    def _input(self, n: fx.Node) -> Channels | None:
        source = n.args[0] if n.args else n.kwargs.get("input")
        found = self.channels.get(source) if isinstance(source, fx.Node) else None
        return found if isinstance(found, Channels) else None

    def _plain(self, n: fx.Node) -> bool:
        """Whether the first argument is the only node, so that nothing else has a say."""
        return len(n.all_input_nodes) == 1

    def _linear(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        module: Any = self.fetch_attr(str(n.target))
        names = {
            name: self._name(f"{n.target}.{name}")
            for name in module._parameters
            if module._parameters[name] is not None
        }
        if "weight" not in names or set(names) - {"weight", "bias"}:
            return None
        axis = CONVOLUTIONS[kind] % value.ndim
        if kind is not nn.Linear and value.ndim != module.weight.ndim:
            return None
        x, weight = self._input(n), module.weight
        count, groups = weight.shape[0], getattr(module, "groups", 1)
        if x is not None and x.axis != axis:
            self.wiring.freeze(x)
            x = None
        depthwise = groups > 1 and groups == count and weight.shape[1] == 1
        if groups > 1 and not depthwise:
            self.wiring.freeze(x)
            x = None
        if depthwise and x is not None:
            self.wiring.kill(x)
            out = Channels(axis, x.wires, x.tags, self.wiring.factors.new(count))
        else:
            out = self.wiring.fresh(axis, count)
            read = x or self.wiring.fresh(axis, weight.shape[1])
            if x is None:
                self.wiring.freeze(read)
            self.wiring.reads(names["weight"], 1, read, -1)
        if groups > 1 and x is None:
            self.wiring.freeze(out)
        for name in names.values():
            self.wiring.reads(name, 0, out, 1)
        return out

    def _embedding(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        if (module := self.fetch_attr(str(n.target))).max_norm is not None:
            return None
        out = self.wiring.fresh(value.ndim - 1, module.embedding_dim)
        self.wiring.reads(self._name(f"{n.target}.weight"), 1, out, 1)
        return out

    def _batch_norm(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        module, x = self.fetch_attr(str(n.target)), self._input(n)
        if x is None or x.axis != 1:
            return None
        self.wiring.kill(x)
        out = Channels(1, x.wires, x.tags, self.wiring.factors.new(len(x.wires)))
        return self._normalised(n, module, out, ("weight", "bias"), ("running_mean", "running_var"))

    def _layer_norm(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        module: Any = self.fetch_attr(str(n.target))
        x = self._input(n)
        if x is None:
            return None
        if kind is nn.GroupNorm:
            if module.num_groups != 1 or x.axis != 1:
                return None
        elif len(module.normalized_shape) != 1 or x.axis != value.ndim - 1:
            return None
        self.wiring.kill(x)
        out = Channels(x.axis, x.wires, x.tags, self.wiring.factors.new(len(x.wires)))
        return self._normalised(n, module, out, ("weight", "bias"), ())

    def _normalised(
        self, n: fx.Node, module: Any, out: Channels, affine: tuple[str, ...], others: tuple[str, ...]
    ) -> Channels:
        names = [name for name in affine if getattr(module, name, None) is not None]
        for name in names:
            self.wiring.reads(self._name(f"{n.target}.{name}"), 0, out, 1)
        for name in others:
            if getattr(module, name, None) is not None:
                self.wiring.reads(self._name(f"{n.target}.{name}"), 0, out, 0)
        if not names:
            self.wiring.kill(out)
        return out

    def _elementwise(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        x = self._input(n)
        if x is None or not self._plain(n) or not isinstance(value, Tensor):
            return None
        if kind in POOLS and (x.axis != 1 or value.ndim != self.values[n.all_input_nodes[0]].ndim or value.ndim < 3):
            return None
        if n.kwargs.get("return_indices") or value.shape[x.axis] != len(x.wires):
            return None
        if kind in SIGN or kind in POSITIVE:
            self.wiring.factors.remark(x.factors, "sign" if kind in SIGN else "positive")
        elif kind in OTHER:
            self.wiring.kill(x)
        return x

    def _operand(self, source: Any, shape: torch.Size, axis: int) -> Channels | None:
        """Channels of one operand of a broadcast operation, or ``None`` if they are unknown or of length one."""
        if not isinstance(source, fx.Node):
            return None
        found, own = self.channels[source], self.values[source]
        if isinstance(found, Channels):
            return found.at(found.axis + len(shape) - own.ndim)
        mine = axis - len(shape) + own.ndim
        if source.op == "get_attr" and mine >= 0 and own.shape[mine] == shape[axis] and isinstance(own, nn.Parameter):
            made = self.wiring.fresh(axis, shape[axis])
            self.wiring.reads(self._name(str(source.target)), mine, made, 1)
            return made
        return None

    def _binary(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        if len(n.args) != 2 or n.kwargs or not isinstance(value, Tensor):
            return None
        sources = [a for a in n.args if isinstance(a, fx.Node)]
        known = [c for a in sources if isinstance(c := self.channels[a], Channels)]
        if not known:
            return None
        first = next(a for a in sources if isinstance(self.channels[a], Channels))
        axis = known[0].axis + value.ndim - self.values[first].ndim
        found = [self._operand(a, value.shape, axis) for a in sources]
        if any(c is None or c.axis != axis or len(c.wires) != value.shape[axis] for c in found):
            return None
        operands = [c for c in found if c is not None]
        if len(operands) == 1:  # a number is the other one
            number = n.args[1] if n.args[0] is sources[0] else n.args[0]
            scales = kind in PRODUCTS and isinstance(number, int | float) and number > 0 and n.args[0] is sources[0]
            if not scales:
                self.wiring.kill(operands[0])
            return operands[0]
        if kind in PRODUCTS:
            for one in operands:
                self.wiring.kill(one)
        return operands[0] if self.wiring.join(*operands) else None

    def _mean(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        x = self._input(n)
        dims = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim")
        keep = n.args[2] if len(n.args) > 2 else n.kwargs.get("keepdim", False)
        if x is None or not self._plain(n) or dims is None:
            return None
        rank = self.values[n.all_input_nodes[0]].ndim
        gone = {d % rank for d in ([dims] if isinstance(dims, int) else dims)}  # pyright: ignore[reportGeneralTypeIssues]
        if x.axis in gone or 0 in gone:
            return None
        return x if keep else x.at(x.axis - sum(d < x.axis for d in gone))

    def _reshape(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        """Positions after the channels join the axis of the channels; nothing else is followed."""
        x = self._input(n)
        if x is None or not isinstance(value, Tensor):
            return None
        before = self.values[n.all_input_nodes[0]].shape
        if value.shape == before:
            return x
        a, rest = x.axis, value.shape[x.axis :]
        if value.shape[:a] != before[:a] or a == 0 or rest.numel() != before[a:].numel():
            return None
        if len(rest) and rest[0] == before[a]:
            return x
        if len(rest) != 1 or x.tags.any():
            return None
        inner = before[a + 1 :].numel()
        tags = np.tile(np.arange(inner), len(x.wires))
        return Channels(a, x.wires.repeat(inner), tags, x.factors.repeat(inner))

    def _permute(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        x = self._input(n)
        arguments = n.args[1:]
        if x is None or n.kwargs or not self._plain(n):
            return None
        order = list(range(value.ndim))
        dims = arguments[0] if len(arguments) == 1 else arguments
        if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
            return None
        numbers = [int(d) % value.ndim for d in dims]  # pyright: ignore[reportArgumentType]
        if "transpose" in str(kind):
            order[numbers[0]], order[numbers[1]] = order[numbers[1]], order[numbers[0]]
        else:
            order = numbers
        return x.at(order.index(x.axis)) if 0 not in (x.axis, order.index(x.axis)) else None

    def _pad(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        x = self._input(n)
        widths = n.args[1] if len(n.args) > 1 else n.kwargs.get("pad")
        mode = n.args[2] if len(n.args) > 2 else n.kwargs.get("mode", "constant")
        fill = n.args[3] if len(n.args) > 3 else n.kwargs.get("value")
        if x is None or mode != "constant" or fill not in (None, 0) or not self._plain(n):
            return None
        if not isinstance(widths, list | tuple) or not all(isinstance(w, int) and w >= 0 for w in widths):
            return None
        place = 2 * (value.ndim - 1 - x.axis)
        counts = [widths[place + side] if place < len(widths) else 0 for side in (0, 1)]
        before, after = (count for count in counts if isinstance(count, int))
        zeros = self.wiring.zeros(x.axis, before + after)
        return self._joined([zeros.take(slice(before)), x, zeros.take(slice(before, None))])

    def _joined(self, pieces: list[Channels]) -> Channels:
        arrays = [np.concatenate([getattr(p, name) for p in pieces]) for name in ("wires", "tags", "factors")]
        return Channels(pieces[0].axis, *arrays)

    def _item(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        source: Any = n.args[0]
        found, index = self.channels[source], n.args[1]
        if isinstance(found, list) and isinstance(index, int):
            return found[index]
        index = index if isinstance(index, tuple) else (index,)
        if not isinstance(found, Channels) or not self._plain(n):
            return None
        if not all(isinstance(i, slice) or type(i) is int for i in index):
            return None
        mine = index[found.axis] if found.axis < len(index) else slice(None)
        if not isinstance(mine, slice) or not isinstance(index[0], slice):
            return None
        dropped = sum(type(i) is int for i in index[: found.axis])
        return self.wiring.cut(found, mine).at(found.axis - dropped)

    def _cat(self, n: fx.Node, value: Any, kind: Any) -> Channels | None:
        sources: Any = n.args[0]
        dim = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", 0)
        found = [self.channels[s] if isinstance(s, fx.Node) else None for s in sources]
        pieces = [c for c in found if isinstance(c, Channels)]
        if len(pieces) < len(found) or len({c.axis for c in pieces}) > 1 or not isinstance(dim, int):
            return None
        if dim % value.ndim == pieces[0].axis:
            return self._joined(pieces)
        return pieces[0] if all(self.wiring.join(pieces[0], other) for other in pieces[1:]) else None

    def _split(self, n: fx.Node, value: Any, kind: Any) -> list[Channels | None] | None:
        x = self._input(n)
        if x is None or not self._plain(n):
            return None
        result, start = [], 0
        for piece in value:
            if piece.shape[x.axis] == len(x.wires):
                result.append(x)
                continue
            stop = start + piece.shape[x.axis]
            result.append(self.wiring.cut(x, slice(start, stop)))
            start = stop
        return result
