"""Instructions: every announcement is a network that can be built, and words are learned from words alone."""

from __future__ import annotations

import pytest
import torch

from weightgen.generators.announce import AnnounceConfig, Announcer, Shape, announced, phrase
from zoo.config import parse_config
from zoo.errors import UsageError

CONFIG = AnnounceConfig(deepest=3, narrowest=4, widest=9, width=32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def announcer() -> Announcer:
    torch.manual_seed(0)
    return Announcer(CONFIG, ["relu", "tanh"], 8)


def test_words_and_shapes_are_the_same_thing(announcer: Announcer) -> None:
    shapes = announcer.random(50, seeded())
    assert [announcer.shape(announcer.words(shape)) for shape in shapes] == shapes
    assert {len(shape.hidden) for shape in shapes} == {1, 2, 3}
    assert {size for shape in shapes for size in shape.hidden} == set(range(4, 10))


def test_whatever_is_announced_can_be_built(announcer: Announcer) -> None:
    for parameter in announcer.parameters():
        parameter.data += 2 * torch.randn(parameter.shape, generator=seeded())
    shapes = announcer.announce(torch.randn(200, 8, generator=seeded()))
    assert len({len(shape.hidden) for shape in shapes}) > 1
    for shape in shapes:
        assert 1 <= len(shape.hidden) <= 3
        assert all(4 <= size <= 9 for size in shape.hidden)
        layout = announced(shape, (3, 2), 5)
        assert layout.config["architecture"]["sizes"] == [6, *shape.hidden, 5]
        assert layout.tensors[-1].shape == (5,)


def test_shapes_are_learned_from_vectors(announcer: Announcer) -> None:
    shapes = announcer.random(12, seeded(1))
    about = torch.eye(12)[:, :8] + torch.randn(12, 8, generator=seeded(2))
    optimizer = torch.optim.Adam(announcer.parameters(), 0.01)
    before = announcer.loss(about, shapes).item()
    for _ in range(80):
        optimizer.zero_grad()
        announcer.loss(about, shapes).backward()
        optimizer.step()
    assert announcer.loss(about, shapes).item() < 0.1 * before
    assert announcer.announce(about) == shapes
    assert announcer.announce(about[3:4]) == shapes[3:4]


def test_one_network_is_asked_for_in_many_ways() -> None:
    texts = [phrase(Shape("tanh", (8, 8)), (8, 8), 5, CONFIG, seeded(i)) for i in range(60)]
    assert len(set(texts)) > 40
    for said in ("wide", "8", "two hidden layers", "3-layer", "tanh", "8x8", "64-8-8-5 tanh MLP"):
        assert any(said in text for text in texts), said
    assert not any("narrow" in text or "ten" in text for text in texts)


def test_a_range_without_sizes_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing can be announced"):
        parse_config({"narrowest": 9, "widest": 8}, AnnounceConfig, source="x")
