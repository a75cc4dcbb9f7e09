"""The discrete codec: exact about missing weights, the same on every run, and as good as theory says it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weightgen.codecs.vq import NO_CODE, VQ, VQConfig
from zoo.config import parse_config
from zoo.errors import UsageError

POSITION = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1] * 7]).bool()
KINDS: dict[str, dict[str, Any]] = {
    "vq": {"kind": "vq", "size": 16},
    "residual": {"kind": "residual", "size": 4, "depth": 2},
    "uneven": {"kind": "residual", "size": 4, "depth": 3},
    "fsq": {"kind": "fsq", "levels": [3, 3, 3]},
    "fsq_reduced": {"kind": "fsq", "levels": [4, 4]},
    "simvq": {"kind": "simvq", "size": 16},
}
AUTOENCODERS = ("none", "mlp", "transformer")


def networks(n: int = 40, seed: int = 0) -> Tensor:
    """Tokens whose layers and roles differ in mean and size; padding is not zero, so that using it would show."""
    values = torch.randn(n, 4, 7, generator=torch.Generator().manual_seed(seed))
    size = torch.tensor([1.0, 1.0, 10.0, 0.1])[:, None]
    mean = torch.tensor([0.0, 0.0, 5.0, -3.0])[:, None]
    return torch.where(MASK, values * size + mean, 1e3)


def make(kind: str = "vq", autoencoder: str = "none", seed: int = 0, **changes: Any) -> VQ:
    changes |= {"mean_codes": 1.6} if kind == "uneven" else {}
    data = {"group": 3, "quantiser": KINDS[kind], "autoencoder": autoencoder, "width": 16, "depth": 1, **changes}
    torch.manual_seed(0)
    codec = VQ(parse_config(data, VQConfig, source="test"), 7, (2, 2, 1, 2))
    codec.fit([(networks(), MASK, POSITION)], torch.Generator().manual_seed(seed))
    return codec.eval()


@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_values_have_their_shapes_and_masks(kind: str, autoencoder: str) -> None:
    codec = make(kind, autoencoder)
    codes = codec.encode(networks(5), MASK, POSITION)
    each = len(codec.quantiser.vocabulary)
    assert codes.shape == (5, 4, 3 * each) == (5, 4, len(codec.vocabulary))
    used = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool().repeat_interleave(each, 1)
    if kind == "uneven":
        used &= torch.arange(9) % 3 < torch.tensor([1, 1, 3, 2])[:, None]
    assert (codes[:, ~used] == NO_CODE).all()
    assert (codes[:, used] >= 0).all()
    assert (codes < torch.tensor(codec.vocabulary)).all()
    decoded = codec.decode(codes, MASK, POSITION)
    assert decoded.shape == (5, 4, 7)
    assert (decoded[:, ~MASK] == 0).all()
    torch.testing.assert_close(codec.decode(codes.where(used | (kind == "uneven"), 1), MASK, POSITION), decoded)
    torch.testing.assert_close(codec.reconstruct(networks(5), MASK, POSITION), decoded)


@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_masked_values_have_no_influence_anywhere(kind: str, autoencoder: str) -> None:
    values, codec, other = networks(), make(kind, autoencoder), make(kind, autoencoder)
    changed = torch.where(MASK, values, -7.0)
    assert codec.encode(values, MASK, POSITION).equal(codec.encode(changed, MASK, POSITION))
    other.fit([(changed, MASK, POSITION)], torch.Generator().manual_seed(0))
    for of in (codec.train(), other.train()):
        of.loss(values if of is codec else changed, MASK, POSITION, torch.Generator().manual_seed(1))
    for name, value in codec.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


def test_the_nearest_code_is_nearest_on_the_weights_that_are_there() -> None:
    codec = make("vq", means="role")
    values, mean, deviation = networks(30, seed=1), *codec.normal(POSITION)
    codebook = codec.quantiser.lookup(torch.arange(16)[:, None])
    codes = codec.encode(values, MASK, POSITION)
    x = (values[:, 2, :2] - mean[2]) / deviation[2]
    expected = (x[:, None] - codebook[:, :2]).square().sum(-1).argmin(-1)
    assert codes[:, 2, 0].equal(expected)
    assert codec.decode(codes, MASK, POSITION)[:, 2, :2].allclose(codebook[expected, :2] * deviation[2] + mean[2])


def test_codebooks_are_means_of_the_weights_that_are_there() -> None:
    codec = make("vq", means="role", quantiser={"kind": "vq", "size": 4, "passes": 40, "dead": 0.0})
    mean, deviation = codec.normal(POSITION)
    x = torch.nn.functional.pad((networks() - mean) / deviation, (0, 2)).view(-1, 3)
    there = torch.nn.functional.pad(MASK, (0, 2)).repeat(40, 1).view(-1, 3)
    codes = codec.encode(networks(), MASK, POSITION).flatten()
    for code in range(4):
        mine, entries = x[codes == code], there[codes == code]
        centre = torch.stack([mine[entries[:, i], i].mean() for i in range(3)])
        torch.testing.assert_close(codec.quantiser.lookup(torch.tensor([[code]]))[0], centre, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_codec(kind: str) -> None:
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        codec = make(kind).train()
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        codec.loss(networks(), MASK, POSITION, torch.Generator().manual_seed(3))
        assert torch.random.get_rng_state().equal(before)
        states.append(codec.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(value.equal(states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("autoencoder", ["none", "transformer"])
@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_changes_nothing(kind: str, autoencoder: str, tmp_path: Path) -> None:
    codec = make(kind, autoencoder)
    save_file({k: v.contiguous() for k, v in codec.state_dict().items()}, tmp_path / "codec.safetensors")
    fresh = VQ(codec.config, 7, (2, 2, 1, 2)).eval()
    fresh.load_state_dict(load_file(tmp_path / "codec.safetensors"))
    codes = codec.encode(networks(6, seed=9), MASK, POSITION)
    assert fresh.encode(networks(6, seed=9), MASK, POSITION).equal(codes)
    assert fresh.decode(codes, MASK, POSITION).equal(codec.decode(codes, MASK, POSITION))


@pytest.mark.parametrize("autoencoder", AUTOENCODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_straight_through(kind: str, autoencoder: str) -> None:
    codec = make(kind, autoencoder)
    values = networks(3).requires_grad_()
    codec.reconstruct(values, MASK, POSITION).sum().backward()
    assert values.grad is not None
    assert (values.grad[:, ~MASK] == 0).all()
    assert (values.grad[:, MASK] != 0).all()
    if autoencoder == "none":
        torch.testing.assert_close(values.grad, MASK.float().expand_as(values))


@pytest.mark.parametrize("autoencoder", ["mlp", "transformer"])
def test_an_untrained_autoencoder_changes_nothing_and_training_helps(autoencoder: str) -> None:
    plain, codec, values = make("vq"), make("vq", autoencoder), networks()
    codec.fit([(values, MASK, POSITION)], torch.Generator().manual_seed(0))
    codes = codec.encode(values, MASK, POSITION)
    assert codes.equal(plain.encode(values, MASK, POSITION))
    assert codec.decode(codes, MASK, POSITION).equal(plain.decode(codes, MASK, POSITION))
    start = codec.error(codec.reconstruct(values, MASK, POSITION), values, MASK, POSITION)
    optimiser = torch.optim.Adam(codec.train().parameters(), 3e-3)
    for step in range(60):
        loss = codec.loss(values, MASK, POSITION, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    codec.eval()
    assert codec.error(codec.reconstruct(values, MASK, POSITION), values, MASK, POSITION) < 0.9 * start


def test_the_parts_of_the_loss_say_what_they_name() -> None:
    codec = make("vq")
    loss = codec.loss(networks(), MASK, POSITION, torch.Generator().manual_seed(0))
    assert loss.parts.keys() == {"reconstruction", "commitment", "use", "perplexity"}
    codes = codec.encode(networks(), MASK, POSITION)
    share = codes[codes >= 0].bincount(minlength=16) / (codes >= 0).sum()
    assert loss.parts["use"].item() == pytest.approx((share > 0).float().mean().item())
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    assert loss.parts["perplexity"].item() == pytest.approx(entropy.exp().item(), rel=1e-4)
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + 0.25 * loss.parts["commitment"])
    torch.testing.assert_close(loss.parts["reconstruction"], loss.parts["commitment"])


def test_only_training_moves_a_codebook() -> None:
    codec = make("vq")
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    codec.loss(networks(seed=5), MASK, POSITION, torch.Generator().manual_seed(0))
    codec.train().encode(networks(seed=5), MASK, POSITION)
    assert all(value.equal(before[name]) for name, value in codec.state_dict().items())
    codec.loss(networks(seed=5), MASK, POSITION, torch.Generator().manual_seed(0))
    assert not all(value.equal(before[name]) for name, value in codec.state_dict().items())


def test_bits_count_padding_too() -> None:
    assert make("vq").bits_a_weight(MASK, POSITION) == pytest.approx(9 * 4 / 21)
    assert make("residual").bits_a_weight(MASK, POSITION) == pytest.approx(9 * 2 * 2 / 21)
    assert make("uneven").bits_a_weight(MASK, POSITION) == pytest.approx(2 * (5 * 1 + 1 * 3 + 3 * 2) / 21)
    assert make("fsq").bits_a_weight(MASK, POSITION) == pytest.approx(9 * 3 * 1.5849625 / 21)


@pytest.mark.parametrize(
    ("quantiser", "group", "low", "high"),
    [
        ({"kind": "vq", "size": 4}, 1, 0.112, 0.124),  # Lloyd's scalar quantiser of a Gaussian at 2 bits: 0.1175
        ({"kind": "fsq", "levels": [4]}, 1, 0.110, 0.127),  # equal steps: 0.1188
        ({"kind": "residual", "size": 2, "depth": 2}, 1, 0.112, 0.150),
        ({"kind": "vq", "size": 256}, 4, 0.075, 0.110),  # vectors of four do better, not than the limit of 1/16
        ({"kind": "simvq", "size": 256}, 4, 0.075, 0.135),
    ],
)
def test_errors_on_gaussian_weights_are_those_of_theory(
    quantiser: dict[str, Any], group: int, low: float, high: float
) -> None:
    mask, position = torch.ones(20, 8).bool(), torch.tensor([[0, 0, row, 0] for row in range(20)])
    values = torch.randn(200, 20, 8, generator=torch.Generator().manual_seed(0))
    config = parse_config({"group": group, "means": "role", "quantiser": quantiser}, VQConfig, source="test")
    codec = VQ(config, 8, (1, 1, 20, 1))
    codec.fit([(values[:120], mask, position)], torch.Generator().manual_seed(0))
    held_out = values[120:]
    error = codec.error(codec.reconstruct(held_out, mask, position), held_out, mask, position).item()
    assert low < error < high
    assert codec.bits_a_weight(mask, position) == 2


def test_what_all_networks_share_costs_no_bits() -> None:
    common = networks(1, seed=3)
    values = common + 0.01 * networks(40, seed=4)
    errors = {}
    for means in ("role", "weight"):
        codec = make("vq", means=means)
        codec.fit([(values, MASK, POSITION)], torch.Generator().manual_seed(0))
        decoded = codec.reconstruct(values, MASK, POSITION)
        errors[means] = ((decoded - values)[:, MASK]).square().mean().item()
    assert errors["weight"] < 0.01 * errors["role"]


def test_several_layouts_share_one_codec_and_unknown_positions_fall_back_to_their_role() -> None:
    longer = torch.cat([POSITION, torch.tensor([[1, 0, 1, 0]])])
    mask = torch.cat([MASK, torch.ones(1, 7).bool()])
    common = torch.linspace(-9, 9, 7)  # what the weights of one row have in common in both layouts
    first = networks() + common * (torch.arange(4) == 3)[:, None]
    second = torch.cat([networks(20, seed=1), 0.1 * torch.randn(20, 1, 7)], 1)
    second = second + common * (torch.arange(5) == 3)[:, None]
    codec = make()
    codec.fit([(first, MASK, POSITION), (second, mask, longer)], torch.Generator().manual_seed(0))
    here = torch.cat([first[:, 3], second[:, 3], second[:, 4]]).flatten()
    torch.testing.assert_close(codec.normal.mean[1, 0], here.mean())
    mean, deviation = codec.normal(torch.tensor([[1, 0, 0, 0], [1, 0, 5, 0], [7, 0, 0, 0], [7, 1, 0, 0]]))
    torch.testing.assert_close(mean[0], torch.cat([first[:, 3], second[:, 3]]).mean(0), atol=0.01, rtol=0.01)
    torch.testing.assert_close(mean[1], codec.normal.mean[1, 0].expand(7))
    torch.testing.assert_close(mean[2], codec.normal.mean[-1, 0].expand(7))
    assert deviation[2] == codec.normal.deviation[-1, 0]
    assert deviation[3] == codec.normal.deviation[0, 1]
    decoded = codec.reconstruct(second, mask, longer)
    assert codec.error(decoded, second, mask, longer) < 1


def test_means_of_weights_with_nothing_in_common_are_shrunk_to_the_role() -> None:
    codec, few = make(), networks(6)
    codec.fit_normal([(few, MASK, POSITION)])
    noise = (few.mean(0) - codec.normal.mean[POSITION[:, 0], POSITION[:, 1]][:, None])[MASK].square().sum()
    assert codec.normal.offsets[MASK].square().sum() < 0.3 * noise


def test_constant_weights_stay_finite() -> None:
    codec = make()
    values = torch.full((4, 4, 7), 2.0)
    codec.fit([(values, MASK, POSITION)], torch.Generator().manual_seed(0))
    assert codec.reconstruct(values, MASK, POSITION)[:, MASK].allclose(torch.tensor(2.0), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantiser": {"kind": "residual"}}, "residual needs at least 2"),
        ({"quantiser": {"kind": "fsq", "levels": [1]}}, "at least 2 levels"),
        ({"group": 2, "quantiser": {"kind": "fsq", "levels": [3, 3, 3]}}, "3 levels for sub-vectors of 2"),
        ({"width": 30, "heads": 4}, "multiple"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_config(change, VQConfig, source="test")
