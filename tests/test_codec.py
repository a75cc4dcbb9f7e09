"""The autoencoder over tokens: masked values do not exist for it, and its error has a unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weightgen.codecs.vae import VAE, VAEConfig

CONFIG = VAEConfig(latent=3, width=16, depth=1, heads=2, kl_weight=0.01)
POSITION = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()


def networks(n: int = 6, seed: int = 0) -> Tensor:
    """Tokens whose layers and roles differ in mean and size."""
    values = torch.randn(n, 4, 5, generator=torch.Generator().manual_seed(seed))
    size = torch.tensor([1.0, 1.0, 10.0, 0.1])[:, None]
    mean = torch.tensor([0.0, 0.0, 5.0, -3.0])[:, None]
    return (values * size + mean) * MASK


@pytest.fixture
def vae() -> VAE:
    codec = VAE(CONFIG, 5, (2, 2, 2, 1))
    codec.fit_normal([(networks(50), MASK, POSITION)])
    return codec.eval()


def test_shapes_and_padding(vae: VAE) -> None:
    latent = vae.encode(networks(), MASK, POSITION)
    assert latent.shape == (6, 4, 3)
    decoded = vae.decode(latent, MASK, POSITION)
    assert decoded.shape == (6, 4, 5)
    assert (decoded[:, ~MASK] == 0).all()
    assert (decoded[:, MASK] != 0).all()


def test_masked_values_have_no_influence(vae: VAE) -> None:
    values = networks()
    changed = torch.where(MASK, values, 99.0)
    torch.testing.assert_close(vae.encode(changed, MASK, POSITION), vae.encode(values, MASK, POSITION))
    decoded = vae.decode(vae.encode(values, MASK, POSITION), MASK, POSITION)
    assert vae.error(decoded, changed, MASK, POSITION).equal(vae.error(decoded, values, MASK, POSITION))


def test_networks_of_a_batch_do_not_see_each_other(vae: VAE) -> None:
    values = networks()
    whole = vae.encode(values, MASK, POSITION)
    torch.testing.assert_close(vae.encode(values[2:3], MASK, POSITION), whole[2:3], rtol=1e-5, atol=1e-6)


def test_every_token_sees_the_whole_network(vae: VAE) -> None:
    values = networks(1).requires_grad_()
    vae.encode(values, MASK, POSITION)[0, 0].sum().backward()
    assert values.grad is not None
    assert (values.grad[0][MASK] != 0).all()


def test_statistics_are_those_of_each_layer_and_role(vae: VAE) -> None:
    values = networks(50)
    first = values[:, :2].flatten()
    torch.testing.assert_close(vae.normal.mean[0, 0], first.mean())
    torch.testing.assert_close(vae.normal.deviation[0, 0], first.std(correction=0))
    torch.testing.assert_close(vae.normal.mean[0, 1], values[:, 2, :2].mean())
    torch.testing.assert_close(vae.normal.deviation[1, 0], values[:, 3, :3].std(correction=0))


def test_constant_weights_stay_finite() -> None:
    codec = VAE(CONFIG, 5, (2, 2, 2, 1))
    values = torch.full((4, 4, 5), 2.0) * MASK
    codec.fit_normal([(values, MASK, POSITION)])
    loss = codec.loss(values, MASK, POSITION, torch.Generator().manual_seed(0))
    assert torch.isfinite(loss.total)


def test_the_error_of_the_mean_is_one_and_of_the_truth_zero(vae: VAE) -> None:
    values = networks(50)
    mean, _ = vae.normal(POSITION)
    guess = (mean * MASK).expand_as(values)
    assert vae.error(guess, values, MASK, POSITION).item() == pytest.approx(1.0, rel=1e-4)
    assert vae.error(values, values, MASK, POSITION).item() == 0
    one = values.clone()
    one[0, 2, 0] += 3 * vae.normal.deviation[0, 1]
    assert vae.error(one, values, MASK, POSITION).item() == pytest.approx(9 / (50 * int(MASK.sum())), rel=1e-4)


def test_scale_and_offset_of_a_role_do_not_matter() -> None:
    """Statistics are measured, so multiplying a role by a number changes nothing but the result's units."""
    values, factor = networks(20), torch.tensor([1.0, 1.0, 100.0, 1.0])[:, None]
    latents, errors = [], []
    for scaled in (values, values * factor):
        torch.manual_seed(0)
        codec = VAE(CONFIG, 5, (2, 2, 2, 1))
        codec.fit_normal([(scaled, MASK, POSITION)])
        latents.append(codec.encode(scaled, MASK, POSITION))
        errors.append(codec.loss(scaled, MASK, POSITION, torch.Generator().manual_seed(0)).total)
    torch.testing.assert_close(latents[0], latents[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-4, atol=1e-5)


def test_the_loss_is_what_it_says(vae: VAE) -> None:
    values = networks()
    loss = vae.loss(values, MASK, POSITION, torch.Generator().manual_seed(3))
    mean, log_variance = vae.posterior(values, MASK, POSITION)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(loss.parts["kl"], kl)
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + 0.01 * kl)
    again = vae.loss(values, MASK, POSITION, torch.Generator().manual_seed(3))
    assert again.total.equal(loss.total)
    assert not vae.loss(values, MASK, POSITION, torch.Generator().manual_seed(4)).total.equal(loss.total)


def test_every_part_learns_and_networks_come_back(vae: VAE) -> None:
    values = networks(8)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for step in range(250):
        loss = vae.loss(values, MASK, POSITION, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.total.backward()
        assert step > 0 or all(p.grad is not None for p in vae.parameters())
        optimizer.step()
    decoded = vae.decode(vae.encode(values, MASK, POSITION), MASK, POSITION)
    assert vae.error(decoded, values, MASK, POSITION) < 0.2


def test_codes_may_begin_at_one_network_of_every_layout() -> None:
    config = CONFIG.model_copy(update={"means": "member", "zero_start": True})
    codec = VAE(config, 5, (2, 2, 2, 1)).eval()
    large, small = networks(7), networks(3, seed=1)[:, :3]
    shorter, fewer = MASK[:3], POSITION[:3]
    codec.fit_normal([(small, shorter, fewer), (large, MASK, POSITION)])
    again = VAE(config, 5, (2, 2, 2, 1)).eval()
    again.load_state_dict(codec.state_dict())

    def begins_at(values: Tensor, mask: Tensor, position: Tensor) -> bool:
        start = again.decode(torch.zeros(1, len(position), 3), mask, position)
        return bool((start - values * mask).flatten(1).norm(dim=1).min() < 1e-5)

    assert begins_at(large, MASK, POSITION)
    assert begins_at(small, shorter, fewer)
    assert begins_at(large[:, [0, 2, 3]], MASK[[0, 2, 3]], POSITION[[0, 2, 3]]), "unknown: that of most networks"
    older = {key: value for key, value in codec.state_dict().items() if not key.endswith("layouts")}
    again.load_state_dict(older)
    again.fit_normal([(small, shorter, fewer)])
    assert begins_at(small, shorter, fewer)
