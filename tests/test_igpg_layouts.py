"""One IGPG of several layouts: perceptrons beside convolutional networks, adapters of two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures import RECIPE, TINY_RECIPE, tiny_config
from tests.text_world import make_encoder
from weightgen import jobs
from weightgen.checkpoint import load_generator
from weightgen.generators.announce import Shape
from weightgen.generators.igpg import IGPG
from weightgen.results import GenerateResult
from weightgen.train import train_generator
from weightgen.types import Condition, Vectors
from zoo import kinds, safefile
from zoo.build import build
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.datasets import Examples, load_groups
from zoo.errors import UsageError
from zoo.networks import architecture_of, logits
from zoo.types import Weights
from zoo.zoo import Zoo

CONV = "{channels: [2, 3], kernel: [3, 2], pool: [2, 1], hidden: []}"
TOLD = (
    "stages.announce={steps: 3, batch_size: 8}",
    "announce={deepest: 3, narrowest: 4, widest: 9, width: 16, texts: 20}",
    "refine.depth=1",
)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of perceptrons and convolutional networks that was hardly trained."""
    folder = tmp_path_factory.mktemp("families")
    build(RECIPE, folder / "zoo", (*TINY_RECIPE, f"network.convolutional=[{CONV}]"))
    settings = (f"text_encoder={make_encoder(folder / 'encoder')}", "conditioner.parts=[examples, architecture]", *TOLD)
    with Zoo.open(folder / "zoo") as zoo:
        kinds_made = [architecture_of(one.layout)["family"] for one in load_groups(zoo, "train")]
        assert sorted(kinds_made) == ["cnn", "mlp"]
        train_generator(tiny_config("igpg", *settings), zoo, folder / "igpg")
    return folder / "igpg"


def test_an_instruction_chooses_the_family(families: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load_generator(families)
    assert isinstance(generator, IGPG)
    assert generator.announcer is not None
    assert generator.announcer.activations == ("tanh",)
    (name,) = generator.announcer.others
    assert name == "2-3 tanh CNN for 1 x 8 x 8 images and 2 classes"
    shapes = iter([Shape(name), Shape("tanh", (5,))])
    monkeypatch.setattr(type(generator.announcer), "announce", lambda *_: [next(shapes)])
    x = np.random.default_rng(0).random((8, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "examples.npz", x=x, y=np.arange(8) % 2)
    for folder, family in (("a", "cnn"), ("b", "mlp")):
        result = jobs.generate(families, tmp_path / "examples.npz", tmp_path / folder, instruction="a red fish")
        architecture = json.loads((tmp_path / folder / "weightgen.json").read_text())["architecture"]
        assert architecture["family"] == family
        assert isinstance(result, GenerateResult)
        tensors = safefile.load(result.files[0])[0]
        assert logits(architecture, tensors, torch.from_numpy(x)).isfinite().all()


def test_a_network_with_other_classes_is_refused(families: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load_generator(families)
    assert isinstance(generator, IGPG)
    assert generator.announcer is not None
    name = generator.announcer.others[0]
    monkeypatch.setattr(generator.announcer, "announce", lambda *_: [Shape(name)])
    examples = Examples(torch.zeros(1, 3, 1, 8, 8), torch.ones(1, 3, 1).bool())
    told = Vectors(torch.zeros(1, 2, 16), torch.ones(1, 2).bool())
    with pytest.raises(UsageError, match="which has 2 classes, not 3"):
        generator.layout_for(Condition(examples, architecture=told))


def test_residual_networks_of_a_depth_that_the_zoo_does_not_have(tmp_path: Path) -> None:
    nets = "[{blocks: [1, 1], widths: [2, 4]}, {blocks: [2, 2], widths: [2, 4]}]"
    few = ("tasks={classes: 9, held_out: 1, validation: 1}", f"network.residual={nets}", "training.epochs=1")
    report = build(RECIPE, tmp_path / "zoo", (*TINY_RECIPE[3:], *few))
    assert report.failed == 0
    with Zoo.open(tmp_path / "zoo") as zoo:
        groups = load_groups(zoo, "train")
        made = {json.dumps(architecture_of(one.layout).get("blocks")): one for one in groups}
        assert made.keys() == {"null", "[1, 1]", "[2, 2]"}
        assert all("running_mean" not in name for one in groups for name in one.tensors)
        train_generator(tiny_config("igpg", "refine.depth=1", "conditioner.max_classes=9"), zoo, tmp_path / "igpg")
    x = np.random.default_rng(0).random((18, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "examples.npz", x=x, y=np.arange(18) % 9)
    wanted = architecture_of(made["[2, 2]"].layout) | {"blocks": [3, 3]}
    result = jobs.generate(
        tmp_path / "igpg", tmp_path / "examples.npz", tmp_path / "out", architecture=json.dumps(wanted)
    )
    assert isinstance(result, GenerateResult)
    tensors = safefile.load(result.files[0])[0]
    assert "layer2.2.conv2.weight" in tensors
    assert logits(wanted, tensors, torch.from_numpy(x)).shape == (18, 9)
    assert logits(wanted, tensors, torch.from_numpy(x)).isfinite().all()


def test_convolutions_need_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=np.zeros((60, 7), dtype=np.float32), y=np.arange(60) % 3)
    source = (f"data.source={tmp_path / 'flat.npz'}", "tasks={classes: 2, held_out: 1, validation: 1}")
    for further in (f"convolutional=[{CONV}]", "residual=[{}]"):
        with pytest.raises(UsageError, match="they are no images"):
            build(RECIPE, tmp_path / further[:5], (*TINY_RECIPE[3:], f"network.{further}", *source))


def test_adapters_of_two_ranks_and_sets_of_targets(
    adapter_zoo: Path, text_encoder: Path, text_tasks: dict[str, Path], tmp_path: Path
) -> None:
    overrides = [
        f"data.sources=[{', '.join(str(file) for file in text_tasks.values())}]",
        f"encoder={{name: {text_encoder}}}",
        *("lora={r: 1, target_modules: [dense]}", "tasks={held_out: [], validation: [actions]}"),
        "training={steps: 3, batch_size: 4}",
    ]
    build(RECIPE.parent / "lora-text.yaml", tmp_path / "one", overrides)
    shutil.copytree(adapter_zoo, tmp_path / "both")
    config = tiny_config(
        "igpg",
        *(f"text_encoder={text_encoder}", "conditioner={parts: [description, labels, texts], heads: 2}", "shots=3"),
        *("refine.depth=1", "rename_classes=false"),
    )
    with Zoo.open(tmp_path / "one") as one, Zoo.open(tmp_path / "both") as zoo:
        for record in one.records():
            about = {name: getattr(record, name) for name in ("task", "description", "split", "metrics")}
            zoo.add(one.weights(record), lineage=f"{record.lineage}/rank1", **about)
        groups = load_groups(zoo, "train")
        made = {one.layout.config["peft"]["r"]: sorted(one.layout.config["peft"]["target_modules"]) for one in groups}
        assert made == {1: ["dense"], 2: ["query", "value"]}
        train_generator(config, zoo, tmp_path / "igpg")
    generator = load_generator(tmp_path / "igpg")
    encoder = TextEncoder(EncoderConfig(name=str(text_encoder)))
    said, labels = (encoder.encode(texts)[None] for texts in (["Which animal is it?"], ["the cat", "the dog"]))
    told = Condition(
        description=Vectors(said, torch.ones(1, 1).bool()), labels=Vectors(labels, torch.ones(1, 2).bool())
    )
    for form in generator.problem.forms:
        (weights,) = generator.sample(told, form.layout, 1, seed=0)
        rank = form.layout.config["peft"]["r"]
        folder = tmp_path / f"rank-{rank}"
        folder.mkdir()
        kinds.get("lora").write(weights, folder)
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
        stored = safefile.load(folder / "adapter_model.safetensors")[0]
        assert {value.shape[0] for name, value in stored.items() if "lora_A" in name} == {rank}
        assert all(any(f".{target}." in name for target in made[rank]) for name in stored)
        assert isinstance(weights, Weights)
        assert any(bool(value.any()) for name, value in stored.items() if "lora_B" in name)
