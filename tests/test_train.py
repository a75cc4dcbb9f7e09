"""Training: it can be stopped anywhere and ends the same, and changes what it should and nothing else."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fixtures import tiny_config
from weightgen import train
from weightgen.checkpoint import load_generator, read_history
from weightgen.generators import Generator, GeneratorConfig, Stage, generator_class
from weightgen.train import load_train_config, run_stage, train_generator
from weightgen.training_data import TrainingData
from weightgen.types import Batch, Loss
from zoo.errors import BadArtefact, UsageError, WeightgenError
from zoo.zoo import Zoo

STAGES = ("codec", "alignment", "diffusion", "behaviour")


@pytest.fixture
def zoo(tiny_zoo: Path) -> Iterator[Zoo]:
    with Zoo.open(tiny_zoo) as opened:
        yield opened


@pytest.fixture
def config() -> GeneratorConfig:
    return tiny_config()


def fresh_generator(config: GeneratorConfig, data: TrainingData) -> Generator:
    torch.manual_seed(config.seed)
    return generator_class(config.generator)(config, data.problem)


def stop_at(stage: str, step: int) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, total: int) -> None:
        if (name, done) == (f"train {stage}", step):
            raise KeyboardInterrupt

    return progress


def same(a: Path, b: Path) -> bool:
    one, two = load_generator(a).state_dict(), load_generator(b).state_dict()
    return list(one) == list(two) and all(one[name].equal(two[name]) for name in one)


# selection


@pytest.mark.parametrize("scores", [(0.9, 0.1, 0.5), (0.1, 0.5, 0.9), (0.2, 0.7, 0.7)])
def test_a_stage_ends_with_the_best_of_its_checks(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...]
) -> None:
    config = tiny_config("d2nwg", "stages.codec={steps: 6, batch_size: 8, checks: 3}")
    data = TrainingData(zoo, config)
    generator = fresh_generator(config, data)
    stage = generator.stages()[0]
    generator.prepare(stage.name, data.token_sets())
    seen: list[dict[str, Tensor]] = []

    def validate(model: Generator, ability: str) -> float:
        assert ability == "reconstruct"
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return scores[len(seen) - 1]

    monkeypatch.setattr(data, "validate", validate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = run_stage(generator, stage, data, tmp_path / "state")
    assert [(row["step"], row["val_accuracy"]) for row in log if "val_accuracy" in row] == [
        (2, scores[0]), (4, scores[1]), (6, scores[2]),
    ]  # fmt: skip
    ends = [all(one[name].equal(value) for name, value in generator.state_dict().items()) for one in seen]
    assert ends == [i == scores.index(max(scores)) for i in range(3)]


def test_an_interrupted_stage_keeps_what_it_measured(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    config = tiny_config(
        "d2nwg", "stages.codec={steps: 6, batch_size: 8, checks: 3}", *(f"stages.{s}.steps=0" for s in STAGES[1:])
    )
    train_generator(config, zoo, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_generator(config, zoo, tmp_path / "stopped", progress=stop_at("codec", 5))
    train_generator(config, zoo, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")
    logs = [read_history(tmp_path / name)["stages"]["codec"]["log"] for name in ("whole", "stopped")]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0] if "val_accuracy" in row] == [2, 4, 6]


# interruption


@pytest.mark.parametrize(("stage", "step"), [("codec", 1), ("codec", 3), ("alignment", 4), ("behaviour", 3)])
def test_an_interrupted_training_ends_like_any_other(
    zoo: Zoo, config: GeneratorConfig, tiny_generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stage: str, step: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    handler = signal.getsignal(signal.SIGINT)
    out = tmp_path / "generator"
    with pytest.raises(KeyboardInterrupt):
        train_generator(config, zoo, out, progress=stop_at(stage, step))
    assert signal.getsignal(signal.SIGINT) is handler
    assert not out.exists()
    seen: list[tuple[str, int]] = []
    history = train_generator(config, zoo, out, progress=lambda name, done, total: seen.append((name, done)))
    assert seen[0] == (f"train {stage}", min(step, 3) // 2 * 2 + 1), "it must go on, not start again"
    assert same(out, tiny_generator)
    expected = read_history(tiny_generator)
    assert history == read_history(out)
    for name in STAGES:
        assert history["stages"][name]["log"] == expected["stages"][name]["log"]
        assert history["stages"][name]["val_accuracy"] == expected["stages"][name]["val_accuracy"]
    assert [path.name for path in tmp_path.iterdir()] == ["generator"], "the state is gone at the end"


def test_training_twice_gives_the_same_bytes_whatever_happened_before(
    zoo: Zoo, config: GeneratorConfig, tiny_generator: Path, tmp_path: Path
) -> None:
    torch.manual_seed(987)
    state = torch.random.get_rng_state()
    train_generator(config, zoo, tmp_path / "generator")
    assert (tmp_path / "generator/model.safetensors").read_bytes() == (
        tiny_generator / "model.safetensors"
    ).read_bytes()
    assert torch.random.get_rng_state().equal(state)
    train_generator(tiny_config("d2nwg", "seed=1"), zoo, tmp_path / "other")
    assert not same(tmp_path / "other", tiny_generator)


def test_training_works_outside_the_main_thread(zoo: Zoo, config: GeneratorConfig, tmp_path: Path) -> None:
    data, errors = TrainingData(zoo, config), []

    def work() -> None:
        try:
            generator = fresh_generator(config, data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run_stage(generator, generator.stages()[0], data, tmp_path / "state")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


def test_other_settings_do_not_continue_an_unfinished_training(
    zoo: Zoo, config: GeneratorConfig, tiny_generator: Path, tmp_path: Path
) -> None:
    out = tmp_path / "generator"
    with pytest.raises(KeyboardInterrupt):
        train_generator(config, zoo, out, progress=stop_at("alignment", 1))
    other = tiny_config("d2nwg", "seed=5")
    with pytest.raises(UsageError, match=r"unfinished training of another config or zoo.*--fresh"):
        train_generator(other, zoo, out)
    (tmp_path / ".generator.partial/state.json").write_text("{")
    with pytest.raises(BadArtefact, match=r"damaged.*--fresh"):
        train_generator(config, zoo, out)
    train_generator(config, zoo, out, fresh=True)
    assert same(out, tiny_generator)


# finished folders


def test_a_finished_folder_returns_at_once(zoo: Zoo, config: GeneratorConfig, tiny_generator: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tiny_generator.iterdir()}

    def never(*_: object) -> None:
        raise AssertionError("it trained again")

    assert train_generator(config, zoo, tiny_generator, progress=never) == read_history(tiny_generator)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tiny_generator.iterdir()} == before


def test_a_folder_of_something_else_is_refused(
    zoo: Zoo, config: GeneratorConfig, tiny_generator: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="generator of another config or zoo"):
        train_generator(tiny_config("d2nwg", "shots=2"), zoo, tiny_generator)
    (tmp_path / "photo.png").write_bytes(b"precious")
    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"other files \(photo.png\)"):
            train_generator(config, zoo, tmp_path, fresh=fresh)
        with pytest.raises(UsageError, match="is a file"):
            train_generator(config, zoo, tmp_path / "photo.png", fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_fresh_replaces_a_generator(zoo: Zoo, tmp_path: Path) -> None:
    short = [f"stages.{stage}.steps=0" for stage in STAGES[1:]]
    out = tmp_path / "generator"
    train_generator(tiny_config("d2nwg", *short), zoo, out)
    history = train_generator(tiny_config("d2nwg", *short, "seed=3"), zoo, out, fresh=True)
    assert list(history["stages"]) == ["codec"], "a stage of no steps is left out"
    assert load_generator(out).config.seed == 3
    (out / "config.json").write_text("damaged")
    train_generator(tiny_config("d2nwg", *short, "seed=4"), zoo, out, fresh=True)
    assert load_generator(out).config.seed == 4


# stages


def parameters(generator: Generator) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in generator.named_parameters()}


def test_a_stage_changes_what_it_trains_and_nothing_else(zoo: Zoo, config: GeneratorConfig, tmp_path: Path) -> None:
    data = TrainingData(zoo, config)
    generator = fresh_generator(config, data)
    names = {id(module): name for name, module in generator.named_children()}
    for stage in generator.stages():
        generator.prepare(stage.name, data.token_sets())
        before, buffers = parameters(generator), {n: b.clone() for n, b in generator.named_buffers()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_stage(generator, stage, data, tmp_path / "state")
        trained = {names[id(module)] for module in stage.trains}
        changed = {n.partition(".")[0] for n, value in parameters(generator).items() if not value.equal(before[n])}
        assert changed == trained
        assert all(value.equal(buffers[n]) for n, value in generator.named_buffers())
        assert not any(p.requires_grad for p in generator.parameters())
        assert not generator.training


class Recorder:
    """Plain copies of the weights after every update, to average them by hand."""

    def __init__(self, generator: Generator, loss: Callable[[Batch], Loss]) -> None:
        self.generator, self.loss, self.seen = generator, loss, []

    def __call__(self, batch: Batch) -> Loss:
        self.seen.append(parameters(self.generator))
        return self.loss(batch)


def test_the_averaged_weights_end_up_in_the_model(zoo: Zoo, tmp_path: Path) -> None:
    config = tiny_config("d2nwg", "stages.codec={steps: 5, batch_size: 4, ema: 0.5, lr: 0.01}")
    data = TrainingData(zoo, config)
    generator = fresh_generator(config, data)
    stage = generator.stages()[0]
    finals: list[dict[str, Tensor]] = []
    for ema in (0.5, 0.0):
        settings = stage.config.model_copy(update={"ema": ema})
        twin = fresh_generator(config, data)
        twin.prepare("codec", data.token_sets())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_stage(
                twin, Stage("codec", settings, twin.stages()[0].loss, twin.stages()[0].trains), data, tmp_path / "s"
            )
        finals.append(parameters(twin))
    averaged, last = finals
    assert any(not averaged[name].equal(last[name]) for name in averaged)

    plain = fresh_generator(config, data)
    plain.prepare("codec", data.token_sets())
    recorder = Recorder(plain, plain.stages()[0].loss)
    settings = stage.config.model_copy(update={"ema": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_stage(plain, Stage("codec", settings, recorder, plain.stages()[0].trains), data, tmp_path / "s")
    path = [*recorder.seen, last]
    for name, value in averaged.items():
        mean = path[1][name]
        for step in path[2:]:
            mean = 0.5 * mean + 0.5 * step[name]
        torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_no_number_stops_with_the_step(zoo: Zoo, config: GeneratorConfig, tmp_path: Path) -> None:
    data = TrainingData(zoo, config)
    generator = fresh_generator(config, data)
    stage, calls = generator.stages()[0], iter(range(100))

    def loss(batch: Batch) -> Loss:
        good = stage.loss(batch)
        return Loss(good.total * torch.nan) if next(calls) == 2 else good

    broken = Stage("codec", stage.config, loss, stage.trains)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(WeightgenError, match=r"stage 'codec' became nan at step 2.*stages\.codec\.lr"):
            run_stage(generator, broken, data, tmp_path / "state")


def test_logs_name_the_parts_of_the_loss(zoo: Zoo, config: GeneratorConfig, tiny_generator: Path) -> None:
    data = TrainingData(zoo, config)
    generator = fresh_generator(config, data)
    stage = generator.stages()[0]
    generator.prepare("codec", data.token_sets())
    loss = stage.loss(data.batch(stage, 0))
    row = read_history(tiny_generator)["stages"]["codec"]["log"][0]
    assert row.keys() == {"step", "loss", *loss.parts}
    assert row["loss"] == pytest.approx(loss.total.item(), abs=1e-5)


def test_bad_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown key 'stages\.codec\.step'.*steps"):
        tiny_config("d2nwg", "stages.codec.step=3")
    path = tmp_path / "config.yaml"
    path.write_text("generator: gan\n")
    with pytest.raises(UsageError, match=r"unknown generator 'gan'.*d2nwg"):
        load_train_config(path)


def test_a_resumed_stage_is_prepared_like_an_uninterrupted_one(
    zoo: Zoo, config: GeneratorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = generator_class(config.generator)
    modes: list[tuple[str, bool]] = []
    usual = cls.prepare

    def prepare(self: Generator, stage: str, values: Tensor) -> None:
        modes.append((stage, self.training or any(p.requires_grad for p in self.parameters())))
        usual(self, stage, values)

    monkeypatch.setattr(cls, "prepare", prepare)
    with pytest.raises(KeyboardInterrupt):
        train_generator(config, zoo, tmp_path / "g", progress=stop_at("alignment", 2))
    train_generator(config, zoo, tmp_path / "g")
    assert modes == [(stage, False) for stage in ("codec", "alignment", "alignment", "diffusion", "behaviour")]
