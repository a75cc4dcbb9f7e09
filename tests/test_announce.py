"""Instructions: every announcement is a network that can be built, and words are learned from words alone."""

from __future__ import annotations

import pytest
import torch

from weightgen.generators.announce import AnnounceConfig, Announcer, Shape, announced
from weightgen.generators.instructions import phrase, phrase_of, spelled
from zoo.config import parse_config
from zoo.errors import UsageError

CONFIG = AnnounceConfig(deepest=3, narrowest=4, widest=9, width=32)
CONV = {
    **{"family": "cnn", "input": [1, 8, 8], "channels": [8, 12], "kernel": [3, 2], "pool": [2, 1], "hidden": []},
    **{"classes": 5, "activation": "tanh"},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def announcer() -> Announcer:
    torch.manual_seed(0)
    return Announcer(CONFIG, ["relu", "tanh"], ["conv net"], 8)


def read(texts: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of tokens, of some instructions fewer than of others."""
    mask = torch.arange(tokens) < torch.randint(2, tokens + 1, (texts, 1), generator=seeded(seed))
    return torch.randn(texts, tokens, 8, generator=seeded(seed)) * mask[..., None], mask


def test_words_and_shapes_are_the_same_thing(announcer: Announcer) -> None:
    shapes = announcer.random(90, seeded())
    assert [announcer.shape(announcer.words(shape)) for shape in shapes] == shapes
    assert {len(shape.hidden) for shape in shapes} == {0, 1, 2, 3}
    assert {shape.kind for shape in shapes} == {"relu", "tanh", "conv net"}
    assert {size for shape in shapes for size in shape.hidden} == set(range(4, 10))


def test_whatever_is_announced_can_be_built(announcer: Announcer) -> None:
    for parameter in announcer.parameters():
        parameter.data += torch.randn(parameter.shape)
    shapes = announcer.announce(*read(300, 5, 0))
    assert {shape.kind for shape in shapes} == {"relu", "tanh", "conv net"}
    assert len({len(shape.hidden) for shape in shapes}) > 2
    for shape in shapes:
        if shape.kind == "conv net":
            assert shape.hidden == ()
            continue
        assert 1 <= len(shape.hidden) <= 3
        assert all(4 <= size <= 9 for size in shape.hidden)
        layout = announced(shape, (3, 2), 5)
        assert layout.config["architecture"]["sizes"] == [6, *shape.hidden, 5]
        assert layout.tensors[-1].shape == (5,)


def test_shapes_are_learned_from_vectors(announcer: Announcer) -> None:
    shapes, (about, mask) = announcer.random(12, seeded(1)), read(12, 4, 2)
    optimizer = torch.optim.Adam(announcer.parameters(), 0.01)
    before = announcer.loss(about, mask, shapes).item()
    for _ in range(80):
        optimizer.zero_grad()
        announcer.loss(about, mask, shapes).backward()
        optimizer.step()
    assert announcer.loss(about, mask, shapes).item() < 0.1 * before
    assert announcer.announce(about, mask) == shapes
    longer = torch.nn.functional.pad(about[3:4], (0, 0, 0, 2), value=9.0), torch.nn.functional.pad(mask[3:4], (0, 2))
    assert announcer.announce(*longer) == shapes[3:4], "what is no token is not read"


def test_one_network_is_asked_for_in_many_ways() -> None:
    texts = [phrase(Shape("tanh", (8, 8)), (8, 8), 5, CONFIG, seeded(i)) for i in range(400)]
    assert len(set(texts)) > 300
    said = ("wide", "8", "eight", "two hidden layers", "pair of hidden layers", "3-layer", "three-layer", "tanh", "8x8")
    for part in (*said, "64-8-8-5", "64 -> 8 -> 8 -> 5", "three layers counting the output", "second hidden layer"):
        assert any(part in text for text in texts), part
    for wrong in ("narrow", "thin", "one hidden", "three hidden", "four", "a deep", "shallow"):
        assert not any(wrong in text for text in texts), wrong


def test_sizes_are_said_in_their_order() -> None:
    texts = [phrase(Shape("relu", (9, 4)), (8, 8), 5, CONFIG, seeded(i)) for i in range(60)]
    for text in texts:
        said = text.replace("nine", "9").replace("four", "4").replace("64", "").replace("layers of", "")
        assert 0 <= said.find("9") < said.rfind("4"), text


def test_other_networks_are_asked_for_by_what_they_are() -> None:
    texts = [phrase_of(CONV, seeded(i)) for i in range(200)]
    for part in ("CNN", "convolutional network", "two convolutions", "8-12", "small", "tanh", "8x8"):
        assert any(part in text for text in texts), part
    assert not any("MLP" in text or "hidden" in text for text in texts)
    other = {"family": "resnet", "classes": 5}
    assert len({phrase_of(other, seeded(i)) for i in range(5)}) == 1, "by its name"


def test_numbers_in_words() -> None:
    assert [spelled(n) for n in (0, 4, 16, 20, 21, 40, 99)] == [
        *("no", "four", "sixteen", "twenty", "twenty-one", "forty", "ninety-nine")
    ]


def test_a_range_without_sizes_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing can be announced"):
        parse_config({"narrowest": 9, "widest": 8}, AnnounceConfig, source="x")
