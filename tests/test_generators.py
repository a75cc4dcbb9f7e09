"""The contract of every registered generator, then what holds for D2NWG alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures import tiny_config
from weightgen.checkpoint import load_generator, save_generator
from weightgen.generators import Generator, generator_class, generator_names
from weightgen.generators.d2nwg import D2NWG
from weightgen.subjects.texts import TextSubject
from weightgen.training_data import TrainingData
from weightgen.types import Batch, Condition
from zoo.datasets import Examples, bank_of
from zoo.errors import UsageError
from zoo.networks import architecture_of, logits
from zoo.types import Layout
from zoo.zoo import Zoo


@pytest.fixture(scope="module")
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo.open(tiny_zoo) as opened:
        yield opened


@pytest.fixture(scope="module")
def make(zoo: Zoo, adapter_zoo: Path, text_encoder: Path) -> Callable[..., tuple[Generator, TrainingData]]:
    """A fresh generator, trained for a few steps a stage on one batch, and its data."""

    @functools.cache
    def data_of(name: str) -> TrainingData:
        if generator_class(name).learns_from == "weights":
            return TrainingData(zoo, tiny_config(name))
        with Zoo.open(adapter_zoo) as adapters:
            return TrainingData(adapters, tiny_config(name, f"text_encoder={text_encoder}"))

    def build(name: str, *overrides: str, steps: int = 3) -> tuple[Generator, TrainingData]:
        data = data_of(name)
        config = tiny_config(name, f"text_encoder={data.config.text_encoder or 'null'}", *overrides)
        torch.manual_seed(0)
        generator = generator_class(name)(config, data.problem)
        data.lend(generator)
        for stage in generator.stages():
            generator.prepare(stage.name, data.token_sets())
            descend(generator, stage.trains, stage.loss, data.batch(stage, 0), steps)
            generator.finish(stage.name)
        return generator.requires_grad_(False).eval(), data

    return build


def descend(generator: Generator, modules: Any, loss: Any, batch: Batch, steps: int, lr: float = 3e-3) -> list[float]:
    """Train on one batch over and over; returns the losses."""
    generator.train().requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in generator.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        result = loss(batch)
        assert torch.isfinite(result.total)
        assert all(torch.isfinite(part) for part in result.parts.values())
        losses.append(result.total.item())
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
    return losses


def condition(zoo: Zoo, tasks: list[int], seed: int = 0) -> Condition:
    bank = bank_of(zoo, zoo.tasks("val"), 1)
    return Condition(bank.support(torch.tensor(tasks), 3, torch.Generator().manual_seed(seed)))


def ask(data: TrainingData, tasks: list[int], seed: int = 0) -> Condition:
    """What is known of some tasks of the validation split; of text tasks there is one, those for training follow."""
    subject = data.held[0].support
    if isinstance(subject, TextSubject):
        training = data.groups[0].subject
        assert isinstance(training, TextSubject)
        subject = TextSubject(subject.encoder, [*subject.data, *training.data])
    return subject.condition(torch.tensor(tasks), 3, torch.Generator().manual_seed(seed))


def layout_of(generator: Generator, data: TrainingData) -> Layout:
    """A layout that the generator writes."""
    return generator.layout_for(ask(data, [0])) if generator.learns_from == "texts" else data.held[0].form.layout


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(a[name].equal(b[name]) for name in a)


NAMES = pytest.mark.parametrize("name", generator_names())


@NAMES
def test_samples_are_networks_of_the_layout(name: str, make: Any) -> None:
    generator, data = make(name)
    layout = layout_of(generator, data)
    for n in (1, 3):
        networks = generator.sample(ask(data, [0]), layout, n, 5)
        assert len(networks) == n
        for one in networks:
            assert one.layout == layout
            assert {k: tuple(v.shape) for k, v in one.tensors.items()} == {
                spec.name: spec.shape for spec in layout.tensors
            }
            assert all(torch.isfinite(value).all() and value.is_contiguous() for value in one.tensors.values())
            assert not any(value.requires_grad for value in one.tensors.values())
            if layout.kind == "dense":
                assert logits(architecture_of(one.layout), one.tensors, torch.rand(4, 8, 8)).shape == (4, 2)
            else:
                batch = {key: value[None] for key, value in one.tensors.items()}
                assert 0 <= data.held[0].judge.under(layout).score(batch, 0) <= 1


@NAMES
def test_the_seed_decides(name: str, make: Any) -> None:
    generator, data = make(name)
    layout = layout_of(generator, data)
    one, again, other = (generator.networks(ask(data, [0, 1]), layout, seed, 2) for seed in (1, 1, 2))
    assert equal(one, again)
    assert equal(one, other) is not generator.random
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    assert equal(one, generator.networks(ask(data, [0, 1]), layout, 1, 2))
    assert torch.random.get_rng_state().equal(state)


@NAMES
def test_candidates_and_tasks_have_their_axes(name: str, make: Any) -> None:
    generator, data = make(name)
    layout = layout_of(generator, data)
    networks = generator.networks(ask(data, [2, 0]), layout, 4, 3)
    assert {k: tuple(v.shape) for k, v in networks.items()} == {
        spec.name: (2, 3, *spec.shape) for spec in layout.tensors
    }
    assert any(not value[0].allclose(value[1], rtol=0.01) for value in networks.values()), "tasks must differ"
    sampled = generator.sample(ask(data, [2]), layout, 3, 4)
    for i, one in enumerate(sampled):  # the same noise: candidates of the first task come first
        for key, value in one.tensors.items():
            torch.testing.assert_close(networks[key][0, i], value, rtol=1e-4, atol=1e-5)


@NAMES
def test_neighbours_in_a_batch_do_not_matter(name: str, make: Any) -> None:
    generator, data = make(name)
    layout = layout_of(generator, data)
    one, other = (generator.networks(ask(data, tasks), layout, 1, 2) for tasks in ([0, 1], [0, 2]))
    for key in one:
        torch.testing.assert_close(one[key][0], other[key][0], rtol=1e-4, atol=1e-5)


@NAMES
def test_other_layouts_and_conditions_are_refused(name: str, make: Any) -> None:
    generator, data = make(name)
    layout = layout_of(generator, data)
    other = Layout(layout.kind, "another base", layout.tensors, layout.config)
    own = layout.fingerprint[:12] if generator.learns_from == "weights" else "that layout_for gives"
    with pytest.raises(UsageError, match=f"{own}, not {other.fingerprint[:12]}"):
        generator.sample(ask(data, [0]), other, 1, 0)
    for wrong in (ask(data, [0, 1]), Condition()):
        with pytest.raises(UsageError, match="one task is needed"):
            generator.sample(wrong, layout, 1, 0)
    known = ask(data, [0])
    if known.examples is None:
        with pytest.raises(UsageError, match="every task in words"):
            generator.sample(replace(known, words=()), layout, 1, 0)
    else:
        small = Condition(Examples(known.examples.x[..., :3], known.examples.mask))
        with pytest.raises(UsageError, match="was trained on"):
            generator.sample(small, layout, 1, 0)


@NAMES
def test_every_stage_learns(name: str, make: Any) -> None:
    generator, data = make(name, steps=0)
    stages = generator.stages()
    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        assert stage.judged_by in ("sample", "reconstruct")
        generator.prepare(stage.name, data.token_sets())
        batch = data.batch(stage, 0)
        with torch.no_grad():
            assert stage.loss(batch).total.equal(stage.loss(batch).total), "a step must be repeatable"
        losses = descend(generator, stage.trains, stage.loss, batch, 25)
        assert losses[-1] < 0.98 * losses[0], (stage.name, losses)
        for module in stage.trains:
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()), stage.name
        generator.finish(stage.name)


@NAMES
def test_reconstruction_and_writing_keep_shape_and_padding(name: str, make: Any) -> None:
    generator, data = make(name)
    values, layout = data.held[0].val.values, data.held[0].form.layout
    rng = torch.Generator().manual_seed(0)
    if generator.learns_from == "texts":
        for refused in (
            lambda: generator.reconstruct(values, layout),
            lambda: generator.write(ask(data, [0]), layout, rng),
        ):
            with pytest.raises(UsageError, match=name):
                refused()
        return
    again = generator.reconstruct(values, layout)
    written = generator.write(ask(data, [0, 1, 2]), layout, rng)
    assert again.shape == values.shape
    assert written.shape == (3, *values.shape[1:])
    assert again.equal(generator.reconstruct(values, layout)), "no noise"
    for result in (again, written):
        assert (result[:, ~generator.frame(layout).mask] == 0).all()


@NAMES
def test_a_saved_generator_writes_the_same(name: str, make: Any, tmp_path: Path) -> None:
    generator, data = make(name)
    layout = layout_of(generator, data)
    save_generator(tmp_path / "g", generator, {})
    assert equal(
        load_generator(tmp_path / "g").networks(ask(data, [1]), layout, 3, 2),
        generator.networks(ask(data, [1]), layout, 3, 2),
    )


def test_unknown_generators_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'gan'.*d2nwg"):
        generator_class("gan")


# D2NWG


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("denoiser.sampling_steps=26", r"denoiser\.sampling_steps"),
        ("width=17", "width of 17 cannot be shared by 2"),
        ("codec.width=17", "width of 17 cannot be shared by 2"),
        ("conditioner.heads=3", "width of 16 cannot be shared by 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config("d2nwg", override)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance(guidance: float, zoo: Zoo, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, _ = make("d2nwg", f"denoiser={{depth: 1, sampling_steps: 4, guidance: {guidance}}}")
    calls: list[int] = []
    forward = generator.denoiser.forward
    monkeypatch.setattr(generator.denoiser, "forward", lambda *a: (calls.append(1), forward(*a))[1])
    one, two = (
        generator.write(condition(zoo, [task]), generator.problem.forms[0].layout, torch.Generator().manual_seed(0))
        for task in (0, 1)
    )
    assert len(calls) == 2 * 4 * (1 if guidance == 1 else 2)
    assert one.allclose(two, atol=1e-6) == (guidance == 0), "without guidance the condition must have no influence"
    if guidance == 3:
        plain, _ = make("d2nwg")
        assert not one.allclose(
            plain.write(condition(zoo, [0]), generator.problem.forms[0].layout, torch.Generator().manual_seed(0)),
            atol=1e-4,
        )


@pytest.mark.parametrize("steps", [1, 2, 5, 25])
@pytest.mark.parametrize(
    "process", ["process: v, schedule: squaredcos_cap_v2", "process: v, schedule: linear", "process: flow"]
)
def test_the_sampler_finds_what_the_denoiser_believes(
    steps: int, process: str, zoo: Zoo, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, data = make("d2nwg", f"denoiser={{depth: 1, sampling_steps: {steps}, {process}}}", steps=0)
    assert isinstance(generator, D2NWG)
    layout = data.problem.forms[0].layout
    truth = 3 * torch.randn(1, len(generator.frame(layout)), generator.config.codec.latent)  # no clipping

    def velocity(noisy: Tensor, time: Tensor, condition: Any, frame: Any) -> Tensor:
        if "flow" in process:
            return (noisy - truth) / (time / 1000)[:, None, None]
        signal = generator.process.scheduler.alphas_cumprod[time][:, None, None].sqrt()
        sigma = (1 - signal.square()).sqrt()
        return signal * (noisy - signal * truth) / sigma - sigma * truth

    monkeypatch.setattr(generator.denoiser, "forward", velocity)
    written = generator.write(condition(zoo, [0, 1]), layout, torch.Generator().manual_seed(0))
    expected = generator.decode(truth, layout).expand_as(written)
    torch.testing.assert_close(written, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("process", ["v", "flow"])
def test_both_processes_learn(process: str, make: Any) -> None:
    generator, data = make("d2nwg", f"denoiser={{depth: 1, sampling_steps: 3, process: {process}}}", steps=0)
    stage = next(stage for stage in generator.stages() if stage.name == "diffusion")
    losses = descend(generator, stage.trains, stage.loss, data.batch(stage, 0), 25)
    assert losses[-1] < 0.98 * losses[0]


def test_a_generator_that_writes_whole_networks_only_says_so(zoo: Zoo, make: Any) -> None:
    generator, data = make("mapper")
    layout, values = data.problem.forms[0].layout, data.held[0].val.values[:1]
    given = torch.ones(values.shape[1], dtype=torch.bool)
    with pytest.raises(UsageError, match="mapper writes whole networks only"):
        generator.fill(condition(zoo, [0]), layout, values, given, torch.Generator())


def test_given_layers_stay_and_the_others_fit_them(zoo: Zoo, make: Any) -> None:
    generator, data = make("d2nwg")
    layout, values = data.problem.forms[0].layout, data.held[0].val.values[:2]
    given = generator.frame(layout).position[:, 0] == 0
    seed = torch.Generator()
    filled = generator.fill(condition(zoo, [0, 1]), layout, values, given, seed.manual_seed(0))
    assert filled[:, given].equal(values[:, given])
    assert not filled[:, ~given].allclose(values[:, ~given])
    other = generator.fill(condition(zoo, [0, 1]), layout, 2 * values, given, seed.manual_seed(0))
    assert not other[:, ~given].allclose(filled[:, ~given], atol=1e-5), "what is given must have an influence"
    hidden = torch.where(given[:, None], values, torch.full_like(values, 7.0))
    again = generator.fill(condition(zoo, [0, 1]), layout, hidden, given, seed.manual_seed(0))
    assert again.equal(filled), "what is not given must have none"


def test_output_tokens_know_their_class(make: Any) -> None:
    generator, data = make("d2nwg", steps=0)
    roles, frame = data.problem.tokenizer.roles, generator.frame(data.problem.forms[0].layout)
    for (layer, role, row, _), found in zip(frame.position.tolist(), frame.class_of_token.tolist(), strict=True):
        assert found == (row if (layer, roles[role]) == (1, "weight") else -1)


def test_condition_and_weights_share_a_space(zoo: Zoo, make: Any) -> None:
    generator, data = make("d2nwg")
    tasks, networks = (
        generator.embed_condition(condition(zoo, [0, 1])),
        generator.embed_weights(data.held[0].val.values, data.held[0].form.layout),
    )
    for vectors in (tasks, networks):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert tasks.shape[1] == networks.shape[1]


def test_latents_are_standardised_before_diffusion(make: Any) -> None:
    generator, data = make("d2nwg", steps=0)
    latents = generator.latents(data.groups[0].train.values, data.groups[0].form.layout)
    torch.testing.assert_close(latents.mean((0, 1)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 1), correction=0), torch.ones(4), atol=1e-3, rtol=0)
