"""The tokenizer: no bit is lost, positions and masks are right, and nothing is guessed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo import safefile
from zoo.errors import BadArtefact, UsageError
from zoo.kinds.dense import from_state_dict
from zoo.safefile import DTYPES
from zoo.token_stream import PIECE, Piece
from zoo.tokens import EXACT_DTYPES, TORCH_DTYPES, Tokenizer
from zoo.types import Layout, TensorSpec, Tokens, Weights

SHAPES = [(), (1,), (7,), (3, 5), (4, 1), (2, 3, 3, 2), (1, 16), (5, 17), (0,), (0, 4), (4, 0)]


def weights(dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Weights:
    """One tensor of every shape, each of its own magnitude, with zeros and negative zeros among the values."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for i, shape in enumerate(SHAPES):
        value = torch.randn(shape, generator=generator) * scale * 2.0 ** (i % 5 - 2)
        flat = value.view(-1)
        flat[2::7] = 0.0
        flat[3::7] = -0.0
        state[f"m{i}.weight"] = value.to(dtype)
    return from_state_dict(state)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def assert_same(a: Weights, b: Weights) -> None:
    assert a.layout.fingerprint == b.layout.fingerprint
    assert list(a.tensors) == list(b.tensors)
    for name, value in a.tensors.items():
        assert value.dtype == b.tensors[name].dtype
        assert bits(value) == bits(b.tensors[name]), name


@pytest.mark.parametrize("width", [1, 3, 8, 16, 17, 64])
@pytest.mark.parametrize("dtype", EXACT_DTYPES)
def test_round_trip_is_bit_exact(dtype: str, width: int) -> None:
    one = weights(TORCH_DTYPES[dtype])
    tokenizer = Tokenizer.fit([one, weights(TORCH_DTYPES[dtype], seed=1)], width)
    tokens = tokenizer.encode(one)
    assert tokens.values.shape == (tokenizer.count(one.layout), width)
    assert_same(tokenizer.decode(tokens, one.layout), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e10])
def test_round_trip_is_exact_far_from_the_scale_it_was_fitted_on(dtype: torch.dtype, scale: float) -> None:
    tokenizer = Tokenizer.fit([weights()], 8)
    one = weights(dtype, scale=scale)
    assert_same(tokenizer.decode(tokenizer.encode(one), one.layout), one)


@pytest.mark.parametrize("width", [2, 5, 64])
def test_mask_covers_the_weights_and_padding_is_zero(width: int) -> None:
    one = weights()
    tokens = Tokenizer.fit([one], width).encode(one)
    assert int(tokens.mask.sum()) == one.layout.numel
    assert (tokens.values[~tokens.mask] == 0).all()
    assert sorted(tokens.mask.int().diff(dim=1).unique().tolist(), reverse=True)[0] <= 0, "padding comes last"


def test_position_names_layer_role_row_and_chunk() -> None:
    one = from_state_dict({"a.weight": torch.randn(2, 5), "a.bias": torch.randn(2), "b.weight": torch.randn(1, 3)})
    tokenizer = Tokenizer.fit([one], 4)
    tokens = tokenizer.encode(one)
    weight, bias = tokenizer.roles.index("weight"), tokenizer.roles.index("bias")
    rows = [
        (0, weight, 0, 0),
        (0, weight, 0, 1),
        (0, weight, 1, 0),
        (0, weight, 1, 1),
        (0, bias, 0, 0),
        (1, weight, 0, 0),
    ]
    assert [tuple(row) for row in tokens.position.tolist()] == rows
    scale = 2.0 ** tokenizer.exponents["0/weight"]
    assert (tokens.values[2] * scale).tolist() == one.tensors["a.weight"][1, :4].tolist()
    assert (tokens.values[3, 0] * scale).item() == one.tensors["a.weight"][1, 4].item()
    assert tokens.mask[3].tolist() == [True, False, False, False]


def test_positions_are_distinct_inside_a_layer_and_template_needs_no_values() -> None:
    one = from_state_dict({f"m{i}.weight": torch.randn(shape) for i, shape in enumerate(SHAPES)})
    tokenizer = Tokenizer.fit([one], 3)
    tokens = tokenizer.encode(one)
    mask, position = tokenizer.template(one.layout)
    assert mask.equal(tokens.mask)
    assert position.equal(tokens.position)
    assert len(position.unique(dim=0)) == len(position)


@pytest.mark.parametrize("magnitude", [1e-6, 0.03, 1.0, 900.0])
def test_tokens_are_standardised_by_layer_and_role(magnitude: float) -> None:
    def make() -> Weights:
        return from_state_dict({"a.weight": torch.randn(30, 30) * magnitude, "b.weight": torch.randn(30, 30) * 7})

    train = [make() for _ in range(4)]
    tokenizer = Tokenizer.fit(train, 30)
    for layer in (0, 1):
        power = torch.stack([t.values[t.position[:, 0] == layer] for t in map(tokenizer.encode, train)]).square().mean()
        assert 0.7 <= power.sqrt().item() <= 1.5


def test_statistics_come_from_the_given_networks_only() -> None:
    small, large = weights(scale=1.0), weights(seed=5, scale=1024.0)
    assert Tokenizer.fit([small], 8) == Tokenizer.fit(iter([small]), 8)
    alone, both = Tokenizer.fit([small], 8), Tokenizer.fit([small, large], 8)
    many = [f"{i}/weight" for i, shape in enumerate(SHAPES) if math.prod(shape) >= 15]
    assert many
    assert all(both.exponents[key] >= alone.exponents[key] + 8 for key in many)
    twins = Tokenizer.fit([small, small, small], 8)
    assert twins == alone, "statistics are means, not sums"
    values = alone.encode(large).values
    assert values.equal(Tokenizer.fit([small], 8).encode(large).values), "encoding must not fit"


def test_a_known_role_in_a_new_layer_has_the_scale_of_the_role() -> None:
    one = from_state_dict({"a.weight": torch.full((2, 2), 4.0)})
    deeper = from_state_dict({"a.weight": torch.zeros(2, 2), "b.weight": torch.full((2, 2), 4.0)})
    tokens = Tokenizer.fit([one], 2).encode(deeper)
    assert tokens.values[2:].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_zero_networks_have_finite_tokens() -> None:
    zero = from_state_dict({"a.weight": torch.zeros(3, 3)})
    tokens = Tokenizer.fit([zero], 4).encode(zero)
    assert (tokens.values == 0).all()


def test_json_round_trip() -> None:
    tokenizer = Tokenizer.fit([weights()], 5)
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again == tokenizer
    assert again.encode(weights()).values.equal(tokenizer.encode(weights()).values)


@pytest.mark.parametrize(
    "damage",
    [
        {"width": None},
        {"width": "wide"},
        {"roles": None},
        {"exponents": None},
        {"exponents": {"weight": "x"}},
        {"exponents": {"weight": math.nan}},
        {"exponents": [1, 2]},
    ],
    ids=str,
)
def test_damaged_statistics_are_refused(damage: dict[str, Any]) -> None:
    good = Tokenizer.fit([weights()], 5).to_json()
    with pytest.raises(BadArtefact, match="tokenizer statistics"):
        Tokenizer.from_json({**good, **damage})
    with pytest.raises(BadArtefact, match="tokenizer statistics"):
        Tokenizer.from_json({key: value for key, value in good.items() if key not in damage})


def test_unknown_roles_are_refused() -> None:
    tokenizer = Tokenizer.fit([from_state_dict({"a.weight": torch.ones(2, 2)})], 4)
    other = from_state_dict({"a.bias": torch.ones(2)})
    for call in (tokenizer.encode, lambda one: tokenizer.template(one.layout)):
        with pytest.raises(UsageError, match=r"'bias'.*known roles: weight"):
            call(other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_types_that_float32_cannot_hold_are_refused(dtype: torch.dtype) -> None:
    one = from_state_dict({"a.weight": torch.ones(2, 2, dtype=dtype)})
    with pytest.raises(UsageError, match="cannot hold exactly"):
        Tokenizer.fit([one], 4).encode(one)


@pytest.mark.parametrize("shape", [(3, 4), (5, 4), (4, 3), (4, 5)])
def test_tokens_that_do_not_fit_the_layout_are_refused(shape: tuple[int, int]) -> None:
    one = from_state_dict({"a.weight": torch.ones(4, 4)})
    tokenizer = Tokenizer.fit([one], 4)
    with pytest.raises(UsageError, match=r"takes \(4, 4\)"):
        tokenizer.tensors(torch.zeros(shape), one.layout)
    tokens = Tokens(
        torch.zeros(shape), torch.ones(shape, dtype=torch.bool), torch.zeros(shape[0], 4, dtype=torch.int64)
    )
    with pytest.raises(UsageError, match=r"takes \(4, 4\)"):
        tokenizer.decode(tokens, one.layout)


def test_nothing_to_fit_on_is_refused() -> None:
    with pytest.raises(UsageError, match="no networks"):
        Tokenizer.fit([], 4)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        Tokenizer.fit([weights()], 0)


def test_tensors_keep_leading_axes_and_gradients() -> None:
    one = from_state_dict({"a.weight": torch.randn(3, 5), "a.bias": torch.randn(3)})
    tokenizer = Tokenizer.fit([one], 4)
    values = tokenizer.encode(one).values.expand(2, 6, -1, -1).clone().requires_grad_()
    tensors = tokenizer.tensors(values, one.layout)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "a.weight": (2, 6, 3, 5),
        "a.bias": (2, 6, 3),
    }
    assert tensors["a.weight"][1, 4].equal(one.tensors["a.weight"])
    sum(value.sum() for value in tensors.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert values.grad is not None
    assert ((values.grad != 0) == tokenizer.encode(one).mask).all(), "padding must have no influence"


def test_values_of_many_networks_are_those_of_each() -> None:
    many = [weights(seed=seed) for seed in range(6)]
    tokenizer, layout = Tokenizer.fit(many, 8), many[0].layout
    stacked = {n: torch.stack([w.tensors[n] for w in many]).unflatten(0, (2, 3)) for n in many[0].tensors}
    values = tokenizer.values(stacked, layout)
    for i, one in enumerate(many):
        assert values[i // 3, i % 3].equal(tokenizer.encode(one).values)
    assert all(value.equal(stacked[name]) for name, value in tokenizer.tensors(values, layout).items())


def test_layouts_with_equal_tokens_but_other_shapes_are_told_apart() -> None:
    flat = Layout("dense", None, (TensorSpec("a.weight", (2, 8), "F32", 0, "weight"),))
    deep = Layout("dense", None, (TensorSpec("a.weight", (2, 2, 2, 2), "F32", 0, "weight"),))
    value = torch.randn(2, 8)
    tokenizer = Tokenizer.fit([Weights(flat, {"a.weight": value})], 8)
    tokens = tokenizer.encode(Weights(flat, {"a.weight": value}))
    assert tokenizer.decode(tokens, deep).tensors["a.weight"].equal(value.view(2, 2, 2, 2))


EVERY_DTYPE = tuple(DTYPES)


def any_dtype(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random bits in a tensor of any type, those of numbers that are not finite included."""
    attribute, size = DTYPES[name]
    random = torch.Generator().manual_seed(seed)
    high = 2 if name == "BOOL" else 256
    raw = torch.randint(high, (*shape, size), generator=random, dtype=torch.uint8)
    return raw.view(getattr(torch, attribute)).reshape(shape)


def stream(tokenizer: Tokenizer, one: Weights, piece: int) -> tuple[list[Piece], Weights]:
    """Pieces of a network and the network made of them again."""
    pairs = [(spec, one.tensors[spec.name]) for spec in one.layout.tensors]
    pieces = list(tokenizer.encode_stream(pairs, one.layout, piece=piece))
    parts: dict[str, list[Tensor]] = {}
    for spec, start, values in tokenizer.decode_stream(iter(pieces), one.layout):
        assert start == sum(len(part) for part in parts.get(spec.name, []))
        parts.setdefault(spec.name, []).append(values)
    return pieces, Weights(one.layout, {s.name: torch.cat(parts[s.name]).reshape(s.shape) for s in one.layout.tensors})


@pytest.mark.parametrize("piece", [1, 7, 16, 1000])
@pytest.mark.parametrize("width", [1, 8, 17])
@pytest.mark.parametrize("dtype", EXACT_DTYPES)
def test_streams_have_the_same_tokens_and_lose_no_bit(dtype: str, width: int, piece: int) -> None:
    one = weights(TORCH_DTYPES[dtype])
    tokenizer = Tokenizer.fit([one], width)
    pieces, again = stream(tokenizer, one, piece)
    assert_same(again, one)
    assert not any(p.carried is not None for p in pieces if p.spec.numel)
    assert all(len(p.values) <= max(1, -(-piece // width)) * max(1, p.rows) for p in pieces)
    whole = tokenizer.encode(one)
    tokens = [p.tokens(tokenizer.roles.index(p.spec.role)) for p in pieces]
    assert torch.cat([t.values for t in tokens]).equal(whole.values)
    assert torch.cat([t.mask for t in tokens]).equal(whole.mask)
    assert torch.cat([t.position for t in tokens]).equal(whole.position)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_streams_carry_every_type_and_every_bit_pattern(dtype: str) -> None:
    state = {
        f"m{i}.weight": any_dtype(dtype, shape, i) for i, shape in enumerate([(), (5,), (40, 13), (2, 3, 4), (0, 3)])
    }
    one = from_state_dict(state)
    tokenizer = Tokenizer(4, ("weight",), {"weight": -3})
    for piece in (1, 6, 1 << 20):
        pieces, again = stream(tokenizer, one, piece)
        assert_same(again, one)
        if dtype not in EXACT_DTYPES:
            assert all(len(p.values) == 0 for p in pieces)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-40, 3e38, -0.0])
def test_only_pieces_that_scaling_would_round_are_carried(value: float) -> None:
    tensor = torch.randn(8, 8)
    tensor[5, 2] = value
    one = from_state_dict({"a.weight": tensor})
    pieces, again = stream(Tokenizer(4, ("weight",), {"weight": 3 if abs(value) < 1 else -3}), one, 16)
    assert_same(again, one)
    carried = [i for i, p in enumerate(pieces) if p.carried is not None]
    assert carried == ([] if value == 0 or math.isinf(value) else [2])


def test_mixed_layouts_pass_through_a_file_in_little_memory(tmp_path: Path) -> None:
    tensors = {
        "big.weight": torch.randn(3000, 1111),
        "long.bias": torch.randn(3_000_001).to(torch.bfloat16),
        "odd.weight": any_dtype("F64", (17, 5)),
        "steps": torch.tensor(7),
        "f8.weight": torch.randn(33, 9).to(torch.float8_e5m2),
    }
    safefile.save(tmp_path / "x.safetensors", tensors)
    mapped, _ = safefile.load(tmp_path / "x.safetensors")
    one = from_state_dict(mapped)
    tokenizer = Tokenizer(64, ("weight", "bias"), {"weight": 0, "bias": 0})
    pairs = ((spec, mapped[spec.name]) for spec in one.layout.tensors)
    largest, seen = 0, 0
    for spec, start, values in tokenizer.decode_stream(tokenizer.encode_stream(pairs, one.layout), one.layout):
        source = tensors[spec.name].reshape(-1)[start : start + len(values)]
        assert values.dtype == source.dtype
        assert bits(values[:9]) == bits(source[:9])
        assert torch.equal(values.view(torch.uint8), source.view(torch.uint8))
        largest, seen = max(largest, len(values)), seen + len(values)
    assert seen == one.layout.numel
    assert largest <= PIECE


def test_streams_that_do_not_fit_are_refused() -> None:
    one = from_state_dict({"a.weight": torch.randn(4, 6), "a.bias": torch.randn(4)})
    tokenizer = Tokenizer.fit([one], 4)
    a, b = ((spec, one.tensors[spec.name]) for spec in one.layout.tensors)
    for pairs in ([a], [a, b, b], [(a[0], b[1]), b], [(TensorSpec("c", (4,), "F32", 0, "bias"), b[1])]):
        with pytest.raises(UsageError, match=r"is not expected|was not given"):
            list(tokenizer.encode_stream(pairs, one.layout))
    pieces = list(tokenizer.encode_stream([b, a], one.layout, piece=6))
    assert len(list(tokenizer.decode_stream(pieces, one.layout))) == 5
    for wrong in (pieces[:-1], pieces[1:], [pieces[0], *pieces[2:]], [*pieces, pieces[-1]], []):
        with pytest.raises(UsageError, match=r"is not expected|ends at value"):
            list(tokenizer.decode_stream(wrong, one.layout))
    short = dataclasses.replace(pieces[1], values=pieces[1].values[:1])
    with pytest.raises(UsageError, match="has 1 tokens, not 2"):
        list(tokenizer.decode_stream([pieces[0], short], one.layout))
    other = Tokenizer(4, ("bias",), {"bias": 0})
    with pytest.raises(UsageError, match="'weight', which the tokenizer has not seen"):
        list(other.encode_stream([a, b], one.layout))
