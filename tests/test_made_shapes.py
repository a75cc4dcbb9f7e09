"""Perceptrons of shapes made at random in the behavioural stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fixtures import tiny_config
from weightgen.generators import generator_class
from weightgen.shapes import ShapesConfig
from weightgen.train import train_generator
from weightgen.training_data import TrainingData
from zoo.errors import UsageError
from zoo.networks import architecture_of
from zoo.zoo import Zoo

ZOO = {"family": "mlp", "sizes": [64, 4, 2], "activation": "tanh"}
SHAPES = "behaviour.shapes={share: 0.5, narrowest: 3, widest: 5, deepest: 2, without: [[4]]}"


def test_made_shapes_keep_to_the_range_and_leave_out_what_is_measured() -> None:
    config = ShapesConfig(share=1, narrowest=3, widest=5, deepest=2, without=[[4], [5, 5]])
    rng = torch.Generator().manual_seed(0)
    made = [config.like(ZOO, rng) for _ in range(300)]
    hidden = {tuple(one["sizes"][1:-1]) for one in made}
    every = {(a,) for a in range(3, 6)} | {(a, b) for a in range(3, 6) for b in range(3, 6)}
    assert hidden == every - {(4,), (5, 5)}
    assert all((one["sizes"][0], one["sizes"][-1], one["activation"]) == (64, 2, "tanh") for one in made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"narrowest": 9, "widest": 8}, "nothing can be made"),
        ({"share": 1.0, "narrowest": 3, "widest": 3, "deepest": 1, "without": [[3]]}, "every shape"),
    ],
)
def test_ranges_without_shapes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesConfig.model_validate(change)


def test_other_families_are_refused() -> None:
    with pytest.raises(UsageError, match="only perceptrons"):
        ShapesConfig(share=1).like({"family": "cnn"}, torch.Generator())


@pytest.mark.parametrize("name", ["d2nwg", "mapper", "igpg"])
def test_the_behavioural_stage_learns_from_shapes_without_networks(name: str, tiny_zoo: Path, tmp_path: Path) -> None:
    config = tiny_config(name, SHAPES, "stages.behaviour.steps=6")
    with Zoo.open(tiny_zoo) as zoo:
        data = TrainingData(zoo, config)
        torch.manual_seed(0)
        generator = generator_class(name)(config, data.problem)
        generator.prepare(generator.stages()[0].name, data.token_sets())
        behaviour = next(stage for stage in generator.stages() if stage.name == "behaviour")
        batches = [data.batch(behaviour, step) for step in range(30)]
        made = [batch for batch in batches if not len(batch.values)]
        assert 5 < len(made) < 25
        for batch in made:
            assert architecture_of(batch.layout)["sizes"][1:-1] != [4]
            assert batch.condition is not None
            assert len(batch.condition) == behaviour.config.batch_size
        loss = behaviour.loss(made[0])
        assert set(loss.parts) == {"made"}
        assert loss.total.isfinite()
        loss.total.backward()
        assert any(
            p.grad is not None and bool(p.grad.abs().sum()) for part in behaviour.trains for p in part.parameters()
        )
        assert 0 <= train_generator(config, zoo, tmp_path / "made")["stages"]["behaviour"]["val_accuracy"] <= 1


@pytest.mark.parametrize("name", ["d2nwg", "igpg"])
def test_made_shapes_have_no_network_to_start_at(name: str) -> None:
    with pytest.raises(UsageError, match="no network to start at"):
        tiny_config(name, SHAPES, "start=task", "rename_classes=false")
