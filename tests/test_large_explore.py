"""Large-model mode from end to end on tiny models: what is written, what is left alone, what a rerun does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.large_models import TINY, choice_task, label_task, likelihood_task, save_model
from weightgen import cli, jobs
from weightgen.large import card as cards
from weightgen.large import explore, sample, train
from weightgen.large.chunks import ChunkSet, read_chunks
from weightgen.large.config import ChunkConfig, ExploreConfig, load_explore_config
from weightgen.large.explore import side_folder
from weightgen.large.folder import open_model
from weightgen.large.generator import ChunkModel
from weightgen.large.write import ORIGINAL_README, check_checkpoint
from weightgen.progress import Progress
from zoo import safefile
from zoo.errors import BadArtefact, UsageError

SMALL = Path(__file__).parent.parent / "configs" / "explore-small.yaml"
MODELS = {
    "llama": {"max_shard_size": "4KB", "dtype": torch.bfloat16},
    "tied llama": {"tied": True},
    "gpt2": {},
    "bert": {},
}


def run(model: Path, data: Path | str, out: Path, *changes: str, **more: Any) -> dict[str, Any]:
    result = jobs.explore(model, data, out, config=SMALL, overrides=[*TINY, *changes], **more)
    assert result.checkpoint == out
    return result.to_json()


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_checkpoint_comes_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = name.split()[-1]
    model = save_model(tmp_path / "model", family, **MODELS[name])
    (model / "README.md").write_text("---\nlicense: mit\n---\nThe given model.\n")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    task = label_task(tmp_path / "t.json") if family == "bert" else likelihood_task(tmp_path / "t.jsonl")
    monkeypatch.setattr(cards, "select", lambda scored, _: scored[-1])
    card = run(model, task, tmp_path / "out", "sample.n=2")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    given, written = open_model(str(model)), open_model(str(tmp_path / "out"))
    assert given.tensors == written.tensors
    assert given.shards == written.shards
    assert card["selected"] == "candidate-1"
    chosen = [layer["name"] for layer in card["layers"]]
    assert len(chosen) == 2
    old, new = (dict(one.stream(list(one.tensors))) for one in (given, written))
    for tensor in old:
        same = safefile.raw(old[tensor]).tobytes() == safefile.raw(new[tensor]).tobytes()
        assert same == (tensor not in chosen), tensor
    assert card["untouched_tensors"] == len(old) - 2
    assert card["reload_difference"] < 1e-4
    auto = transformers.AutoModel if family == "bert" else transformers.AutoModelForCausalLM
    assert auto.from_pretrained(tmp_path / "out", dtype="auto").dtype == next(iter(old.values())).dtype
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("w3")["input_ids"] == [3]
    assert (tmp_path / "out" / ORIGINAL_README).read_text() == (model / "README.md").read_text()
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
    kinds = [row["kind"] for row in card["rows"]]
    assert (kinds.count("original"), kinds.count("candidate"), kinds.count("noise")) == (1, 2, 1)


def test_a_rerun_trains_and_scores_nothing_and_more_candidates_only_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = save_model(tmp_path / "model", "gpt2"), choice_task(tmp_path / "t.jsonl")
    out, held_out = tmp_path / "out", choice_task(tmp_path / "held-out.jsonl", first=50)
    first = run(model, task, out, "sample.n=1")
    kept = sorted(path.name for path in side_folder(out).iterdir())

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "run_stage", fail)
    again = run(model, task, out, "sample.n=1", test_data=held_out)
    assert sorted(path.name for path in side_folder(out).iterdir()) == kept
    assert [row["mean"] for row in again["rows"]] == [row["mean"] for row in first["rows"]]
    assert again["test"]["items"] == 12
    assert again["verdict"]["decided_on"] == "test"
    more = run(model, task, out, "sample.n=2")
    assert more["rows"][: len(first["rows"])] == first["rows"]
    assert len(list(side_folder(out).iterdir())) == len(kept) + 1


def test_tensors_that_transformers_fuses_are_scored_through_a_written_checkpoint(tmp_path: Path) -> None:
    model, task = save_model(tmp_path / "model", "mixtral"), likelihood_task(tmp_path / "t.jsonl", count=4)
    card = run(model, task, tmp_path / "out", r"layers.select=layers\.0.*experts\.0", "sample.n=1", "sample.controls=0")
    assert len(card["layers"]) == 3
    changed = next(row for row in card["rows"] if row["kind"] == "candidate")
    assert changed["change_of_log_probability"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.explore", "model", "out", "t.jsonl"]


def stopping(stage: str, step: int) -> Progress:
    def progress(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, step):
            raise KeyboardInterrupt

    return progress


def chunks_of(tmp_path: Path) -> tuple[ExploreConfig, ChunkSet]:
    model = open_model(str(save_model(tmp_path / "model", "gpt2")))
    chunks = read_chunks(
        model, ["transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_fc.weight"], ChunkConfig(rows=4, columns=8)
    )
    return load_explore_config(SMALL, TINY), chunks


@pytest.mark.parametrize(("stage", "step"), [("train codec", 5), ("train diffusion", 4)])
def test_an_interrupted_training_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    config, chunks = chunks_of(tmp_path)
    monkeypatch.setattr(train, "SAVE_EVERY", 2)
    whole = train.trained_model(config, chunks, tmp_path / "whole").state_dict()
    with pytest.raises(KeyboardInterrupt):
        train.trained_model(config, chunks, tmp_path / "part", stopping(stage, step))
    assert not (tmp_path / "part" / "model.safetensors").exists()
    resumed = train.trained_model(config, chunks, tmp_path / "part").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["model.safetensors"]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[ChunkModel, ChunkSet, train.Latents]:
    config, chunks = chunks_of(tmp_path)
    changes = ["codec={steps: 60, batch_size: 16, lr: 0.005}", "diffusion={steps: 30, batch_size: 16, lr: 0.005}"]
    config = load_explore_config(SMALL, [*TINY, *changes])
    model = train.trained_model(config, chunks, tmp_path / "generator")
    return model, chunks, train.encode(model, chunks)


def test_strength_and_residual_decide_how_far_candidates_go(
    trained: tuple[ChunkModel, ChunkSet, train.Latents],
) -> None:
    model, chunks, latents = trained
    decoded, error = sample.reconstruct(model, chunks, latents)
    assert all(value < 0.9 for value in error.values())  # 1 is what predicting the mean gives
    name = chunks.matrices[0].name
    measured = (decoded[name] - sample.original(chunks)[name]).square().mean() / chunks.matrices[0].std ** 2
    assert measured.item() == pytest.approx(error[name], rel=1e-4)
    near, far = (sample.sample(model, chunks, latents, 0, strength, "keep") for strength in (0.2, 1.0))
    assert 0 < sample.distance(chunks, near) < sample.distance(chunks, far)
    assert sample.distance(chunks, sample.original(chunks)) == 0.0
    dropped = sample.sample(model, chunks, latents, 0, 0.2, "drop")
    assert sample.distance(chunks, dropped) > sample.distance(chunks, near)
    again, other = (sample.sample(model, chunks, latents, seed, 0.2, "keep") for seed in (0, 1))
    assert torch.equal(again[name], near[name])
    assert not torch.equal(other[name], near[name])


def test_free_sampling_does_not_look_at_the_given_model(trained: tuple[ChunkModel, ChunkSet, train.Latents]) -> None:
    model, chunks, latents = trained
    changed = {name: value + 1.0 for name, value in latents.items()}
    name = chunks.matrices[0].name
    for strength, same in ((1.0, True), (0.4, False)):
        first, second = (sample.sample(model, chunks, z, 0, strength, "drop")[name] for z in (latents, changed))
        assert torch.equal(first, second) is same


def test_noise_is_as_far_away_as_its_candidate(trained: tuple[ChunkModel, ChunkSet, train.Latents]) -> None:
    model, chunks, latents = trained
    candidate = sample.sample(model, chunks, latents, 0, 0.6, "keep")
    noise = sample.noise_twin(chunks, candidate, 0)
    for name, old in sample.original(chunks).items():
        assert (noise[name] - old).norm().item() == pytest.approx((candidate[name] - old).norm().item(), rel=1e-4)
        assert not torch.allclose(noise[name], candidate[name])


def test_what_is_refused(tmp_path: Path) -> None:
    model, task = save_model(tmp_path / "model", "gpt2"), likelihood_task(tmp_path / "t.jsonl")
    overlap = likelihood_task(tmp_path / "overlap.jsonl", first=11)
    with pytest.raises(UsageError, match="shares 1 items"):
        run(model, task, tmp_path / "out", test_data=overlap)
    with pytest.raises(UsageError, match="different kinds"):
        run(model, task, tmp_path / "out", test_data=choice_task(tmp_path / "c.jsonl"))
    with pytest.raises(UsageError, match="holds no earlier exploration"):
        run(model, task, model)
    with pytest.raises(UsageError, match=r"sample\.strength"):
        run(model, task, tmp_path / "out", "sample.strength=0.0")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_what_was_scored_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = save_model(tmp_path / "model", "gpt2"), likelihood_task(tmp_path / "t.jsonl")
    write = explore.write_checkpoint

    def careless(given: Any, tensors: Any, folder: Path) -> None:
        write(given, tensors, folder)
        loaded, metadata = safefile.load(folder / "model.safetensors")
        loaded["transformer.wpe.weight"][0, 0] += 1.0
        safefile.save(folder / "model.safetensors", loaded, metadata)

    monkeypatch.setattr(explore, "write_checkpoint", careless)
    with pytest.raises(BadArtefact, match=r"wpe\.weight in .* is not what was written"):
        run(model, task, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    given = open_model(str(model))
    assert check_checkpoint(given, {}, model) == len(given.tensors)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, task = save_model(tmp_path / "model", "gpt2"), likelihood_task(tmp_path / "t.jsonl")
    sets = [part for change in TINY if not change.startswith(("layers", "sample")) for part in ("--set", change)]
    options = ["--layers", r"h\.1\.attn", "-n", "2", "--strength", "0.4", "--steps", "3", "--seed", "5", "--json"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["explore", str(model), "--data", str(task), "--out", str(tmp_path / "out"), *options, *sets])
    assert stop.value.code == 0
    card = json.loads(capsys.readouterr().out)
    assert [layer["name"].split(".", 1)[1] for layer in card["layers"]] == [
        "h.1.attn.c_attn.weight",
        "h.1.attn.c_proj.weight",
    ]
    assert (card["config"]["seed"], card["config"]["sample"]["n"], card["strength"]) == (5, 2, 0.4)
    assert card["verdict"]["sentence"]
