"""Networks of shapes that were not learned from: named exactly, or told in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.bench.igpg_architectures import nearest_shape
from tests.fixtures import tiny_config
from tests.text_world import make_encoder
from weightgen import jobs
from weightgen.checkpoint import load_generator
from weightgen.generators.announce import Shape
from weightgen.generators.igpg import IGPG
from weightgen.results import GenerateResult
from weightgen.train import train_generator
from zoo import safefile
from zoo.errors import BadArtefact, UsageError
from zoo.networks import logits
from zoo.zoo import Zoo

WIDE = {"family": "mlp", "sizes": [64, 7, 5, 2], "activation": "tanh"}


@pytest.fixture(scope="module")
def told(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that was trained on instructions."""
    folder = tmp_path_factory.mktemp("told")
    settings = (
        f"text_encoder={make_encoder(folder / 'encoder')}",
        "conditioner.parts=[examples, architecture]",
        "stages.announce={steps: 3, batch_size: 8}",
        "announce={deepest: 3, narrowest: 4, widest: 9, width: 16, texts: 20}",
        "refine.depth=1",
    )
    with Zoo.open(tiny_zoo) as zoo:
        history = train_generator(tiny_config("igpg", *settings), zoo, folder / "igpg")
    assert list(history["stages"]) == ["prior", "behaviour", "announce"]
    return folder / "igpg"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "examples.npz", x=x, y=np.arange(8) % 2)
    return tmp_path / "examples.npz"


def receipt(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "weightgen.json").read_text())


@pytest.mark.parametrize("name", ["d2nwg", "igpg"])
def test_a_shape_is_given_exactly(name: str, request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> None:
    folder = request.getfixturevalue({"d2nwg": "tiny_generator", "igpg": "told"}[name])
    (tmp_path / "wide.json").write_text(json.dumps({"architecture": WIDE}))
    inline = jobs.generate(folder, data, tmp_path / "a", architecture=json.dumps(WIDE))
    in_file = jobs.generate(folder, data, tmp_path / "b", architecture=str(tmp_path / "wide.json"))
    assert isinstance(inline, GenerateResult)
    assert isinstance(in_file, GenerateResult)
    one, other = (safefile.load(found.files[0])[0] for found in (inline, in_file))
    assert one["layers.1.weight"].shape == (5, 7)
    assert all(value.equal(other[key]) for key, value in one.items())
    assert receipt(tmp_path / "a")["architecture"] == WIDE
    assert logits(WIDE, one, torch.rand(3, 8, 8)).isfinite().all()


def test_an_instruction_decides_the_shape(
    told: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = iter([Shape("tanh", (9, 4)), Shape("tanh", (5,))])
    asked: list[torch.Tensor] = []
    generator = load_generator(told)
    assert isinstance(generator, IGPG)
    assert generator.announcer is not None
    monkeypatch.setattr(
        type(generator.announcer), "announce", lambda _, about, mask: (asked.append(about), [next(shapes)])[1]
    )
    for i, sizes in enumerate(([64, 9, 4, 2], [64, 5, 2])):
        jobs.generate(told, data, tmp_path / str(i), n=2, instruction=("a red fish", "the grey dog runs")[i])
        about = receipt(tmp_path / str(i))
        assert about["architecture"]["sizes"] == sizes
        assert about["generated"]["instruction"] == ("a red fish", "the grey dog runs")[i]
        assert len(about["generated"]["networks"]) == 2
    assert [tokens.shape for tokens in asked] == [(1, 5, 16), (1, 6, 16)], "every token goes through the text encoder"


def test_an_instruction_is_heard_without_help(told: Path, data: Path, tmp_path: Path) -> None:
    jobs.generate(told, data, tmp_path / "a", instruction="the blue bird sleeps")
    assert receipt(tmp_path / "a")["architecture"]["sizes"][0] == 64
    jobs.generate(told, data, tmp_path / "b")
    assert receipt(tmp_path / "b")["architecture"]["sizes"] == [64, 4, 2], "without one, what was learned from"


@pytest.mark.parametrize(
    ("wish", "error", "message"),
    [
        ({"architecture": '{"family": "mlp", "sizes": [64, 4, 3]}'}, UsageError, "architecture has 3 classes"),
        ({"architecture": '{"family": "mlp", "sizes": [9, 4, 2]}'}, UsageError, "cannot write 9-4-2 relu MLP"),
        ({"architecture": '{"family": "mlp", "sizes": [0, 4]}'}, UsageError, "positive sizes"),
        ({"architecture": '{"sizes": [64, 4]}'}, BadArtefact, "names no family"),
        ({"architecture": "{"}, BadArtefact, "cannot be read"),
        ({"architecture": "missing.json"}, BadArtefact, r"missing\.json.*cannot be read"),
        ({"instruction": "a wide network"}, UsageError, "reads no instruction"),
    ],
)
def test_wishes_that_cannot_be_met(
    wish: dict[str, Any], error: type[Exception], message: str, tiny_generator: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        jobs.generate(tiny_generator, data, tmp_path / "out", **wish)
    assert not (tmp_path / "out").exists()


def test_the_nearest_shape_is_the_smaller_of_two() -> None:
    known = [[8], [16], [24], [16, 16], [16] * 4]
    assert nearest_shape([20], known) == [16]
    assert nearest_shape([32], known) == [24]
    assert nearest_shape([16, 16, 16], known) == [16, 16]
    assert nearest_shape([16] * 5, known) == [16] * 4
