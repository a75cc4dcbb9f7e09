"""Tracing: what it finds are symmetries of any network, and it finds what the families declare."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.networks import ARCHITECTURES, difference, distance, equal, groups, inputs, make, run, state
from zoo.architectures import UnitGroup
from zoo.errors import UsageError
from zoo.symmetry import align, scramble
from zoo.tracing import trace
from zoo.unit_order import in_order
from zoo.units import names


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """Modules by name and a function that uses them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.function = forward

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def shake(network: nn.Module) -> nn.Module:
    """Random values in what starts as 0 or 1."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value))
    return network.eval()


def assert_symmetries(network: nn.Module, found: tuple[UnitGroup, ...], x: Tensor) -> None:
    source = state(network)
    before = run(network, source, x)
    canonical = in_order(source, found)
    assert difference(run(network, canonical, x), before) <= 1e-5
    assert equal(in_order(canonical, found), canonical)
    for seed in range(3):
        twin = scramble(source, found, random(seed), scale=True)
        assert difference(run(network, twin, x), before) <= 1e-5
        assert distance(in_order(twin, found), canonical) <= 1e-5
        assert equal(in_order(scramble(source, found, random(seed)), found), canonical)


def sizes(found: tuple[UnitGroup, ...]) -> list[int]:
    return [group.size for group in found]


def convolutions(activation: str) -> nn.Module:
    """The family ``cnn`` without its shape annotations, which torch.fx cannot pass."""
    act = {"tanh": torch.tanh, "relu": torch.relu}[activation]

    def forward(m: Any, x: Tensor) -> Tensor:
        for conv, pool in zip(m.convs, (2, 2, 1), strict=True):
            x = act(F.max_pool2d(conv(x), pool) if pool > 1 else conv(x))
        return m.linears[1](act(m.linears[0](x.flatten(1))))

    sizes = ((1, 8, 5), (8, 6, 5), (6, 4, 2))
    convs = nn.ModuleList(nn.Conv2d(*size) for size in sizes)
    return Net(forward, convs=convs, linears=nn.ModuleList([nn.Linear(36, 20), nn.Linear(20, 10)]))


@pytest.mark.parametrize("name", ["mlp", "mlp-relu", "cnn", "cnn-relu"])
def test_tracing_finds_what_families_declare(name: str) -> None:
    architecture = ARCHITECTURES[name]
    network, declared, x = make(architecture), groups(architecture), inputs(architecture)
    if architecture["family"] == "cnn":
        network = shake(convolutions(architecture.get("activation", "tanh")))
    found = trace(network, x)
    assert [(g.size, set(g.axes), g.odd) for g in found] == [(g.size, set(g.axes), g.odd) for g in declared]
    assert_symmetries(network, found, x)


def test_a_residual_network_has_streams_and_blocks() -> None:
    architecture = {**ARCHITECTURES["resnet"], "blocks": [2, 2]}
    found = groups(architecture)
    assert sorted(sizes(found)) == [4, 8, 8, 8, 12, 12], "streams of 8 and of 4 new channels, four blocks"
    stream = found[0]
    assert {part.ranges for part in stream.parts} == {((2, 10),)}
    assert {part.ranges for part in found[sizes(found).index(4)].parts} == {((0, 2), (10, 12))}


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "batch norm before and after": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)),
        (5,),
        [6],
    ),
    "no parameters in the norm": (
        lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Conv1d(6, 3, 1)),
        (2, 8),
        [6],
    ),
    "flattened channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2)),
        (1, 8, 8),
        [4],
    ),
    "one layer used twice": (
        lambda: Net(lambda m, x: m.c(torch.relu(m.b(torch.relu(m.b(torch.relu(m.a(x))))))), a=nn.Linear(3, 5),
                    b=nn.Linear(5, 5), c=nn.Linear(5, 2)),
        (3,),
        [5],
    ),
    "residual": (
        lambda: Net(lambda m, x: m.c(torch.tanh(m.b(h := torch.tanh(m.a(x))) + h)), a=nn.Linear(3, 5),
                    b=nn.Linear(5, 5), c=nn.Linear(5, 2)),
        (3,),
        [5],
    ),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
                              nn.Conv2d(6, 2, 1)),
        (2, 6, 6),
        [6],
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1)), (2, 6, 6), []
    ),
    "gate": (
        lambda: Net(lambda m, x: m.c(torch.sigmoid(m.a(x)) * m.b(x)), a=nn.Linear(3, 5), b=nn.Linear(3, 5),
                    c=nn.Linear(5, 2)),
        (3,),
        [5],
    ),
    "concatenation": (
        lambda: Net(lambda m, x: m.c(torch.cat([torch.relu(m.a(x)), torch.tanh(m.b(x))], 1)), a=nn.Linear(3, 5),
                    b=nn.Linear(3, 4), c=nn.Linear(9, 2)),
        (3,),
        [5, 4],
    ),
    "halves that differ": (
        lambda: Net(lambda m, x: m.c(torch.cat([torch.relu((h := m.a(x))[:, :3]), torch.tanh(h[:, 3:])], 1)),
                    a=nn.Linear(3, 5), c=nn.Linear(5, 2)),
        (3,),
        [3, 2],
    ),
    "chunks": (
        lambda: Net(lambda m, x: m.c(torch.cat([torch.relu((h := m.a(x).chunk(2, 1))[0]), torch.sigmoid(h[1])], 1)),
                    a=nn.Linear(3, 8), c=nn.Linear(8, 2)),
        (3,),
        [4, 4],
    ),
    "twice in one place": (
        lambda: Net(lambda m, x: m.c(torch.cat([h := m.a(x), torch.relu(h)], 1)), a=nn.Linear(3, 5),
                    c=nn.Linear(10, 2)),
        (3,),
        [],
    ),
    "softmax": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Softmax(1), nn.Linear(5, 2)), (3,), []),
    "unknown function": (
        lambda: Net(lambda m, x: m.c(torch.cumsum(m.a(x), 1)), a=nn.Linear(3, 5), c=nn.Linear(5, 2)), (3,), []
    ),
    "a parameter used otherwise": (
        lambda: Net(lambda m, x: m.c(torch.relu(m.a(x))) + m.a.weight.sum(1)[:2], a=nn.Linear(3, 5), c=nn.Linear(5, 2)),
        (3,),
        [],
    ),
    "transposed": (
        lambda: Net(lambda m, x: m.c(torch.relu(m.a(x)).T.T), a=nn.Linear(3, 5), c=nn.Linear(5, 2)), (3,), []
    ),
    "tokens": (
        lambda: Net(
            lambda m, x: m.d(m.n((h := m.a(x).flatten(2).transpose(1, 2) + m.p) + m.c(F.gelu(m.b(h)))).mean(1)),
            a=nn.Conv2d(1, 6, 2, 2), p=nn.Parameter(torch.randn(1, 4, 6)), b=nn.Linear(6, 7), c=nn.Linear(7, 6),
            n=nn.LayerNorm(6), d=nn.Linear(6, 2),
        ),
        (1, 4, 4),
        [6, 7],
    ),
    "normalised over all channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 2), nn.GroupNorm(1, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)), (1, 4, 4), [6]
    ),
    "normalised in groups": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)), (1, 4, 4), []
    ),
    "multihead attention": (
        lambda: Net(lambda m, x: m.c(m.t(m.a(x), m.a(x), m.a(x))[0]), a=nn.Linear(3, 4), t=nn.MultiheadAttention(4, 2),
                    c=nn.Linear(4, 2)),
        (5, 3),
        [],
    ),
    "weight norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.ReLU(),
            nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2),
        ),
        (3,),
        [4],
    ),
    "numbers": (
        lambda: Net(lambda m, x: m.c(torch.tanh(2 * m.b(torch.relu(m.a(x) * 0.5 - 0.1)) / 3)), a=nn.Linear(3, 5),
                    b=nn.Linear(5, 4), c=nn.Linear(4, 2)),
        (3,),
        [5, 4],
    ),
    "squeeze and excite": (
        lambda: Net(lambda m, x: m.c((h := m.a(x)) * torch.sigmoid(m.b(h.mean((2, 3), keepdim=True)))),
                    a=nn.Conv2d(1, 5, 2), b=nn.Conv2d(5, 5, 1), c=nn.Conv2d(5, 2, 1)),
        (1, 4, 4),
        [5],
    ),
    "reshaped channels": (
        lambda: Net(lambda m, x: m.c(m.a(x).view(-1, 2, 3, 3, 3).transpose(1, 2).reshape(-1, 6, 3, 3)),
                    a=nn.Conv2d(1, 6, 2), c=nn.Conv2d(6, 2, 1)),
        (1, 4, 4),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "expected"), CASES.values(), ids=CASES)
def test_what_is_found_is_right(build: Callable[[], nn.Module], shape: tuple[int, ...], expected: list[int]) -> None:
    network, x = shake(build()), torch.randn(4, *shape)
    found = trace(network, x)
    assert sizes(found) == expected
    assert_symmetries(network, found, x)


@pytest.mark.parametrize(
    ("modules", "odd", "scales"),
    [
        ([nn.Tanh()], True, 0),
        ([nn.ReLU()], False, 1),
        ([nn.LeakyReLU(), nn.Dropout()], False, 1),
        ([nn.GELU()], False, 0),
        ([nn.ReLU(), nn.Tanh()], False, 0),
        ([nn.BatchNorm1d(5), nn.ReLU()], False, 1),
        ([nn.BatchNorm1d(5, affine=False), nn.ReLU()], False, 0),
        ([nn.ReLU(), nn.BatchNorm1d(5)], False, 1),
        ([], False, 0),
    ],
    ids=str,
)
def test_signs_and_scales_are_free_where_the_activation_lets_them_through(
    modules: list[nn.Module], odd: bool, scales: int
) -> None:
    network = shake(nn.Sequential(nn.Linear(3, 5), *modules, nn.Linear(5, 2)))
    (group,) = trace(network, torch.randn(2, 3))
    if [type(m) for m in modules] == [nn.ReLU, nn.BatchNorm1d]:
        assert not group.gauges, "the normalisation sees the scale"
        return
    assert (group.odd, len(group.gauges)) == (odd, scales)


def random_network(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Layers, branches and merges drawn at random."""
    draw = python_random.Random(seed)
    modules: dict[str, nn.Module] = {}
    steps: list[Callable[[Any, list[Tensor]], Tensor]] = []
    widths = [2]

    def add(module: nn.Module) -> str:
        modules[f"m{len(modules)}"] = module
        return f"m{len(modules) - 1}"

    for _ in range(draw.randrange(4, 14)):
        source = draw.randrange(len(widths))
        width = widths[source]
        alike = [i for i, w in enumerate(widths) if w == width]
        kind = draw.choice(["conv", "conv", "conv", "norm", "act", "act", "add", "mul", "cat", "slice", "pad", "flip"])
        if kind == "conv":
            new = draw.choice([3, 4, 4, 6])
            name = add(nn.Conv2d(width, new, draw.choice([1, 3]), padding="same", bias=draw.random() < 0.7))
            steps.append(lambda m, v, s=source, n=name: getattr(m, n)(v[s]))
        elif kind == "norm":
            name, new = add(draw.choice([nn.BatchNorm2d(width), nn.GroupNorm(1, width)])), width
            steps.append(lambda m, v, s=source, n=name: getattr(m, n)(v[s]))
        elif kind == "act":
            act, new = draw.choice([torch.tanh, torch.relu, F.gelu, torch.sigmoid, F.leaky_relu]), width
            steps.append(lambda m, v, s=source, a=act: a(v[s]))
        elif kind in ("add", "mul"):
            other, new = draw.choice(alike), width
            merge = torch.add if kind == "add" else torch.mul
            steps.append(lambda m, v, s=source, o=other, f=merge: f(v[s], v[o]))
        elif kind == "cat":
            other = draw.randrange(len(widths))
            new = width + widths[other]
            steps.append(lambda m, v, s=source, o=other: torch.cat([v[s], v[o]], 1))
        elif kind == "slice":
            start = draw.randrange(width)
            new = width - start
            steps.append(lambda m, v, s=source, a=start: v[s][:, a:])
        elif kind == "pad":
            new = width + 2
            steps.append(lambda m, v, s=source: F.pad(v[s], (0, 0, 0, 0, 1, 1)))
        else:
            new = width
            steps.append(lambda m, v, s=source: v[s].flip(1))
        widths.append(new)
    last = add(nn.Linear(widths[-1] * 9, 3))

    def forward(m: Any, x: Tensor) -> Tensor:
        values = [x]
        for step in steps:
            values.append(step(m, values))
        return getattr(m, last)(values[-1].flatten(1))

    return Net(forward, **modules), (2, 3, 3)


@pytest.mark.parametrize("block", range(8))
def test_no_group_of_a_random_network_is_wrong(block: int) -> None:
    hits = 0
    for seed in range(block * 25, block * 25 + 25):
        torch.manual_seed(seed)
        network, shape = random_network(seed)
        network, x = shake(network).double(), torch.randn(3, *shape, dtype=torch.float64)
        found = trace(network, x)
        source = state(network)
        before = run(network, source, x)
        for twin in (scramble(source, found, random(seed), scale=True), in_order(source, found)):
            assert difference(run(network, twin, x), before) <= 1e-9, seed
        hits += bool(found)
    assert hits >= 8


def test_the_module_is_left_alone_and_shared_tensors_keep_all_names() -> None:
    network = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 7, bias=False))
    network[3].weight = network[0].weight  # pyright: ignore[reportArgumentType]
    network.train()
    before = state(network)
    found = trace(network, torch.randint(7, (2, 3)))
    assert network.training
    assert equal(state(network), before)
    assert all(p.device.type == "cpu" for p in network.parameters())
    (group,) = found
    assert {("0.weight", 1), ("3.weight", 1)} <= set(group.axes), "embedding and decoder are one tensor"
    network.eval()
    x = torch.randint(7, (2, 3))
    moved = scramble(before, found, random(0))
    want = run(network, before, x)
    assert difference(run(network, moved, x), want) <= 1e-5


def test_alignment_of_a_traced_network() -> None:
    network = shake(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 2))
    )
    found = trace(network, torch.randn(2, 1, 6, 6))
    source = state(network)
    assert equal(align(scramble(source, found, random(1)), source, found), source)
    assert set().union(*map(names, found)) == source.keys() - {"5.bias"}


def test_what_cannot_be_traced_is_refused() -> None:
    branch = Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Linear(3, 3))
    with pytest.raises(UsageError, match=r"cannot trace Net .*declare its groups"):
        trace(branch, torch.randn(2, 3))
    with pytest.raises(UsageError, match="cannot trace Linear"):
        trace(nn.Linear(3, 3), torch.randn(2, 4))
