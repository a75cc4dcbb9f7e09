"""What holds for IGPG beyond the contract of all generators: lines, windows, drawing, filling, scoring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures import tiny_config
from weightgen.codecs.quantisers import NO_CODE
from weightgen.conditioners.joint import ConditionTokens
from weightgen.generators.igpg import IGPG
from weightgen.generators.igpg_config import IGPGConfig
from weightgen.generators.prior import draw, windows
from weightgen.training_data import TrainingData
from weightgen.types import Condition, Vectors
from zoo.errors import UsageError
from zoo.zoo import Zoo

SEVERAL = "codec={group: 4, quantiser: {kind: residual, size: 8, depth: 3}, mean_codes: 1.5}"


@pytest.fixture(scope="module")
def data(tiny_zoo: Path) -> TrainingData:
    with Zoo.open(tiny_zoo) as zoo:
        return TrainingData(zoo, tiny_config("igpg"))


def make(data: TrainingData, *overrides: str, text_size: int = 0) -> IGPG:
    """A model whose parameters are all random: untrained ones know nothing of their condition."""
    config = tiny_config("igpg", *overrides)
    assert isinstance(config, IGPGConfig)
    torch.manual_seed(0)
    generator = IGPG(config, dataclasses.replace(data.problem, text_size=text_size))
    generator.prepare("prior", data.token_sets())
    for parameter in generator.prior.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return generator.requires_grad_(False).eval()


def known(data: TrainingData, tasks: list[int]) -> Condition:
    return data.held[0].support.condition(torch.tensor(tasks), 3, torch.Generator().manual_seed(0))


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("context", "overlap"), [(100, 3), (10, 9), (4, 1), (7, 3)])
def test_windows_write_every_word_once(context: int, overlap: int) -> None:
    found = list(windows(23, context, overlap))
    assert [word for _, first, stop in found for word in range(first, stop)] == list(range(23))
    for start, first, stop in found:
        assert stop - start <= context
        assert first - start == (overlap if first else 0)


def test_words_are_drawn_from_their_distribution() -> None:
    chances = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    drawn = draw(chances.log().expand(1000, -1), uniform)
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 500, 200, 0, 300, 0]
    assert draw(chances.log(), torch.tensor(1 - 2**-24)).item() == 4


@pytest.mark.parametrize("codec", ["codec={group: 4, quantiser: {size: 16}}", SEVERAL])
def test_words_are_the_codes_of_networks(codec: str, data: TrainingData) -> None:
    generator, held = make(data, codec), data.held[0]
    layout, frame = held.form.layout, generator.frame(held.form.layout)
    codes = generator.codec.encode(held.val.values, frame.mask, frame.position)
    words, line = generator.words(held.val.values, layout), generator.line(layout)
    assert words.shape == (len(codes), int((codes[0] != NO_CODE).sum()))
    assert generator.vocabulary.codes(words, line, (codes.shape[1], codes.shape[2])).equal(codes)
    torch.testing.assert_close(generator.read(words, layout), generator.reconstruct(held.val.values, layout))
    if codec == SEVERAL:
        assert len(line.book.unique()) > 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("context", "overlap"), [(400, 1), (30, 7)])
def test_cached_writing_is_what_the_model_believes(family: str, context: int, overlap: int, data: TrainingData) -> None:
    prior = f"prior={{family: {family}, depth: 2, feed_forward: 16, context: {context}, overlap: {overlap}}}"
    generator = make(data, SEVERAL, prior, "sampling={temperature: 0.7, top_k: 5, top_p: 0.9}")
    line = generator.line(data.problem.forms[0].layout)
    condition, uniform = generator.conditioner(known(data, [0, 1])), random(2, len(line))
    sampling = generator.config.sampling
    words = generator.prior.write(line, condition, uniform, sampling)
    first_word = generator.vocabulary.first(line.book)
    size = torch.tensor(generator.vocabulary.sizes)[line.book]
    assert bool(((words >= first_word) & (words < first_word + size)).all()), "a word of another codebook"
    for start, first, stop in windows(len(line), context, overlap):
        logits = generator.prior(words, line, condition, start, stop)[:, first - start :]
        warped = torch.stack([sampling.warper()(logits[:, i]) for i in range(stop - first)], 1)
        assert (draw(warped, uniform[:, first:stop]) == words[:, first:stop]).all()
    before, after = words.clone(), words.clone()
    after[:, 10:] = first_word[10:]
    one, other = (generator.prior(w, line, condition, 0, 20) for w in (before, after))
    assert one[:, :11].allclose(other[:, :11]), "a word knows those before it, not those after it"
    assert not one[:, 12:].allclose(other[:, 12:])


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance(guidance: float, data: TrainingData) -> None:
    settings = f"sampling={{guidance: {guidance}, temperature: 2.0}}"
    generator = make(data, settings)
    layout = data.problem.forms[0].layout
    one, two = (generator.write(known(data, [t]), layout, torch.Generator().manual_seed(0)) for t in (0, 1))
    assert one.equal(two) == (guidance == 0), "without guidance the condition must have no influence"
    plain = make(data, settings.replace(str(guidance), "1.0")).write(
        known(data, [0]), layout, torch.Generator().manual_seed(0)
    )
    assert one.equal(plain) == (guidance == 1)


def test_missing_condition_tokens_have_no_influence(data: TrainingData) -> None:
    generator = make(data)
    line, encoded = generator.line(data.problem.forms[0].layout), generator.conditioner(known(data, [0]))
    uniform = random(1, len(line))
    longer = [
        dataclasses.replace(
            encoded,
            tokens=torch.cat([encoded.tokens, torch.full_like(encoded.tokens[:, :1], filler)], 1),
            mask=torch.tensor([[True] * encoded.tokens.shape[1] + [False]]),
        )
        for filler in (0.0, 5.0)
    ]
    one, two = (generator.prior.write(line, part, uniform, generator.config.sampling) for part in longer)
    assert one.equal(two)


def test_given_layers_stay_and_the_others_fit_them(data: TrainingData) -> None:
    generator, layout = make(data), data.problem.forms[0].layout
    values, position = data.held[0].val.values[:2], generator.frame(layout).position
    for layer in (0, 1):
        given = position[:, 0] == layer
        seed = torch.Generator()
        filled = generator.fill(known(data, [0, 1]), layout, values, given, seed.manual_seed(0))
        assert filled[:, given].equal(values[:, given])
        other = generator.fill(known(data, [0, 1]), layout, values.flip(0), given, seed.manual_seed(0))
        assert not other[:, ~given].equal(filled[:, ~given]), "what is given must have an influence"
        hidden = torch.where(given[:, None], values, torch.full_like(values, 7.0))
        again = generator.fill(known(data, [0, 1]), layout, hidden, given, seed.manual_seed(0))
        assert again.equal(filled), "what is not given must have none"
    everything = torch.ones(len(position), dtype=torch.bool)
    assert generator.fill(known(data, [0, 1]), layout, values, everything, torch.Generator()).equal(values)


def test_the_score_is_the_surprise_at_every_word(data: TrainingData) -> None:
    layout, values = data.problem.forms[0].layout, data.held[0].val.values[:2]
    bits = {}
    for context in (400, 30):
        generator = make(data, f"prior={{depth: 1, feed_forward: 16, context: {context}, overlap: 8}}")
        line, words = generator.line(layout), generator.words(values, layout)
        condition = generator.conditioner(known(data, [0, 1]))
        bits[context] = generator.score(values, known(data, [0, 1]), layout)
        logits = torch.cat(
            [
                generator.prior(words, line, condition, start, stop)[:, first - start :]
                for start, first, stop in windows(len(line), context, 8)
            ],
            1,
        )
        each = -logits.log_softmax(-1).gather(-1, words[..., None])[..., 0] / torch.tensor(2.0).log()
        torch.testing.assert_close(bits[context], each.mean(1))
    assert not bits[400].allclose(bits[30])


def test_the_gradient_goes_straight_through_the_words(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is judged is a network that can be written; what learns are the probabilities of its words."""
    generator = make(data)
    stage = next(stage for stage in generator.stages() if stage.name == "behaviour")
    batch, layout = data.batch(stage, 0), data.problem.forms[0].layout
    judged: list[dict[str, Tensor]] = []
    assert batch.queries is not None
    loss_of = batch.queries.loss
    monkeypatch.setattr(type(batch.queries), "loss", lambda _, tensors: (judged.append(tensors), loss_of(tensors))[1])
    for parameter in generator.prior.parameters():
        parameter.requires_grad_(True)
    stage.loss(batch).total.backward()
    values = generator.problem.tokenizer.values(judged[0], layout).detach()
    torch.testing.assert_close(generator.reconstruct(values, layout), values, rtol=1e-4, atol=1e-5)
    assert generator.prior.head_of_vector.weight.grad is not None
    assert generator.prior.head_of_vector.weight.grad.abs().sum() > 0


def test_words_say_which_network_is_wanted(data: TrainingData) -> None:
    """The instruction is one part of the condition among others."""
    generator = make(data, "conditioner.parts=[examples, architecture]", "conditioner.drop=0", text_size=6)
    layout = data.problem.forms[0].layout

    def write(vector: Tensor | None, examples: bool = True) -> Tensor:
        condition = known(data, [0]) if examples else Condition()
        if vector is not None:
            there = torch.ones(1, 1, dtype=torch.bool)
            condition = dataclasses.replace(condition, architecture=Vectors(vector[None, None], there))
        return generator.write(condition, layout, torch.Generator().manual_seed(0))

    one, other = torch.eye(6)[:2]
    assert not write(one).equal(write(other))
    assert not write(one, examples=False).equal(write(other, examples=False))
    assert write(None).shape == write(one).shape
    stage = generator.stages()[0]
    batch = data.batch(stage, 0)
    assert batch.condition is not None
    rows = len(batch.condition)
    there = Vectors(torch.randn(rows, 1, 6, generator=torch.Generator().manual_seed(0)), torch.ones(rows, 1).bool())
    batch = dataclasses.replace(batch, condition=dataclasses.replace(batch.condition, architecture=there))
    for parameter in generator.conditioner.parameters():
        parameter.requires_grad_(True)
    stage.loss(batch).total.backward()
    gradient: Any = generator.conditioner.text["architecture"]
    assert gradient[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prior={context: 16, overlap: 16}", "overlap of 16 words leaves nothing new"),
        ("heads=3", "width of 16 cannot be shared by 3"),
        ("sampling.temperature=0", r"sampling\.temperature"),
        ("prior={word_size: 0.5}", "quantiser.kind vq, not residual"),
    ],
)
def test_settings_that_do_not_fit_are_refused(override: str, message: str) -> None:
    several = (SEVERAL,) if "residual" in message else ()
    with pytest.raises(UsageError, match=message):
        tiny_config("igpg", *several, override)


def test_the_refinement_is_bounded_and_knows_the_condition(data: TrainingData) -> None:
    generator = make(data, "refine={depth: 1, reach: 0.5}")
    assert generator.refine is not None
    layout, line = data.problem.forms[0].layout, generator.line(data.problem.forms[0].layout)
    words = generator.words(data.held[0].val.values[:1], layout)
    one, other = (generator.conditioner(known(data, [task])) for task in (0, 1))
    assert generator.read(words, layout, one).equal(generator.read(words, layout)), "nothing before it is trained"
    for parameter in generator.refine.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    vectors = generator.prior.vectors[words]
    refined = generator.refine(vectors, generator.prior.embed(words, vectors, line, one), one)
    assert 0.1 < (refined - vectors).abs().max() < 0.5 + 1e-5
    assert not generator.read(words, layout, one).equal(generator.read(words, layout, other))
    alone = ConditionTokens(one.tokens.repeat(1, 2, 1), torch.arange(2 * one.tokens.shape[1])[None] < one.classes, 2)
    assert generator.read(words, layout, alone).allclose(generator.read(words, layout, one), atol=1e-5), "masked tokens"


def test_words_may_begin_small_and_learn_what_they_stand_for(data: TrainingData) -> None:
    plain = make(data)
    assert plain.prior.moved is None
    assert plain.prior.meaning.equal(plain.vocabulary.vectors(plain.codec))
    small = make(data, "prior={depth: 1, feed_forward: 16, word_size: 0.1, learn_words: true}", "codec.means=member")
    assert small.prior.moved is not None
    small.prior.moved.data.zero_()
    torch.testing.assert_close(small.prior.meaning, 0.1 * small.vocabulary.vectors(small.codec))
    layout, train = data.problem.forms[0].layout, data.token_sets()[0].values
    begun = small.read(small.words(train[:4], layout), layout)
    spread = (begun - begun.mean(0)).square().sum() / (train[:4] - train[:4].mean(0)).square().sum()
    assert spread < 0.02, "all words stand for nearly the same network"
    assert (train - begun[0]).flatten(1).norm(dim=1).min() < 0.3 * begun[0].norm(), "which is one of the zoo"
    stage = next(stage for stage in small.stages() if stage.name == "behaviour")
    for part in stage.trains:
        part.requires_grad_(True)
    stage.loss(data.batch(stage, 0)).total.backward()
    assert small.prior.moved.grad is not None
    assert small.prior.moved.grad.abs().sum() > 0
    small.requires_grad_(False)
    small.prior.moved.data += torch.randn(small.prior.moved.shape, generator=torch.Generator().manual_seed(0))
    meaning = small.prior.meaning.clone()
    small.finish("behaviour")
    torch.testing.assert_close(small.prior.meaning, meaning)
    small.prepare("codec", data.token_sets())
    torch.testing.assert_close(small.prior.meaning, meaning)
    again = small.read(small.words(train[:4], layout), layout)
    torch.testing.assert_close(again, small.reconstruct(train[:4], layout))  # the codec has learned it too


def test_the_behavioural_stage_trains_words_and_refinement(data: TrainingData) -> None:
    generator = make(data, "refine={depth: 1}")
    assert generator.refine is not None
    generator.refine.out.weight.data += 0.1
    stage = next(stage for stage in generator.stages() if stage.name == "behaviour")
    assert generator.refine in stage.trains
    for part in stage.trains:
        part.requires_grad_(True)
    stage.loss(data.batch(stage, 0)).total.backward()
    for name in ("out.weight", "body.layers.0.linear1.weight"):
        gradient = generator.refine.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
