"""Large-model mode in parts: spectrum, chunks, checkpoints, tasks, scores, verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
import transformers

from tests.large_models import choice_task, label_task, likelihood_task, save_model, sentence
from weightgen.large import card as cards
from weightgen.large.card import Scored
from weightgen.large.chunks import cut, grid_of, paste, read_chunks
from weightgen.large.config import ChunkConfig, LayersConfig, ScoreConfig
from weightgen.large.folder import open_model
from weightgen.large.scoring import Causal, Encoder, Outcome, metric_of
from weightgen.large.spectrum import block_matrices, choose, law_median, spectrum
from weightgen.large.tasks import load_task
from zoo import safefile
from zoo.errors import BadArtefact, NetworkError, UsageError


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(120, 480), (200, 240), (150, 150)])
def test_the_law_predicts_the_median_and_the_edge_of_noise(rows: int, columns: int) -> None:
    matrix = gaussian(rows, columns)
    values = torch.linalg.eigvalsh(matrix @ matrix.T / columns)
    assert law_median(rows / columns) == pytest.approx(values.median().item(), rel=0.06)
    found = spectrum("noise", 0.1 * matrix)
    assert found.sigma == pytest.approx(0.1, rel=0.03)
    assert found.edge == pytest.approx(0.01 * (1 + (rows / columns) ** 0.5) ** 2, rel=0.06)
    assert found.energy_share < 0.05


def test_planted_directions_stand_out_and_leave_the_estimate_of_the_noise_alone() -> None:
    left, right = F.normalize(gaussian(100, 3, 1), dim=0), F.normalize(gaussian(3, 300, 2), dim=1)
    matrix = gaussian(100, 300) + 60 * left @ right
    found = spectrum("planted", matrix)
    assert 3 <= found.outside <= 5  # the largest eigenvalues of noise may end just above the edge
    assert found.sigma == pytest.approx(1.0, rel=0.05)
    power, q = 60**2 / 300, 100 / 300  # a planted direction lifts an eigenvalue to (1 + power) (1 + q / power)
    share = 3 * (1 + power) * (1 + q / power) / (100 + 3 * power)
    assert found.energy_share == pytest.approx(share, abs=0.05)
    assert spectrum("planted", matrix.T).energy_share == pytest.approx(found.energy_share)


def test_a_matrix_of_zeros_has_nothing_outside() -> None:
    assert spectrum("zeros", torch.zeros(4, 6)).energy_share == 0.0


def test_layers_are_chosen_by_spectrum_or_by_name(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "llama", "llama")
    tensors, metadata = safefile.load(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] + 5 * torch.ones_like(tensors[name])
    safefile.save(folder / "model.safetensors", tensors, metadata)
    model = open_model(str(folder))
    assert len(block_matrices(model)) == 14  # seven a layer; no embedding, head or norm
    names, spectra = choose(model, LayersConfig(top=1))
    assert names == [name]
    assert spectra[0].name == name
    assert [s.energy_share for s in spectra] == sorted((s.energy_share for s in spectra), reverse=True)
    flat = choose(model, LayersConfig(top=1, prefer="noise"))[0]
    assert [s.energy_share for s in spectra if s.name in flat] == [spectra[-1].energy_share]
    by_name, none = choose(model, LayersConfig(select=r"layers\.0\.self_attn\.[qk]_proj"))
    assert [n.split(".")[-2] for n in by_name] == ["k_proj", "q_proj"]
    assert none == ()
    with pytest.raises(UsageError, match="fits no weight matrix"):
        choose(model, LayersConfig(select="nowhere"))
    with pytest.raises(UsageError, match="no regular expression"):
        choose(model, LayersConfig(select="("))


@pytest.mark.parametrize("shape", [(8, 16), (7, 13), (1, 5), (9, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cutting_and_pasting_keeps_every_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    chunks = cut(tensor.flatten(1), ChunkConfig(rows=4, columns=8))
    assert chunks.shape[1:] == (4, 8)
    assert torch.equal(paste(chunks, shape), tensor)


def test_a_chunk_is_a_block_and_knows_its_neighbours() -> None:
    matrix = torch.arange(8 * 24.0).reshape(8, 24)
    chunks = cut(matrix, ChunkConfig(rows=4, columns=8))
    corner, near = grid_of(2, 3)
    assert torch.equal(chunks[4], matrix[4:8, 8:16])
    assert corner[4].tolist() == [1, 1]
    assert near[4].tolist() == [1, -1, 3, 5]
    assert near[0].tolist() == [-1, 3, -1, 1]


def test_chunks_know_layer_and_role_and_are_standardised(tmp_path: Path) -> None:
    model = open_model(str(save_model(tmp_path / "llama", "llama", max_shard_size="4KB")))
    names = choose(model, LayersConfig(select="(q|down)_proj"))[0]
    chunks = read_chunks(model, names, ChunkConfig(rows=4, columns=8))
    assert [m.place[0, :2].tolist() for m in chunks.matrices] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert chunks.sizes == (2, 2, 4, 5)
    first = chunks.matrices[1]
    standard = first.standard(torch.arange(len(first.values)))
    assert standard.mean().abs() < 1e-5
    assert standard.square().mean() == pytest.approx(1.0, rel=1e-4)
    assert len(chunks) == sum(len(m.values) for m in chunks.matrices)


def test_each_shard_is_opened_once_and_only_if_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(save_model(tmp_path / "llama", "llama", max_shard_size="4KB")))
    assert len(model.shards) > 3
    wanted = [name for name in model.tensors if "layers.0.mlp" in name]
    opened: list[str] = []
    load = safefile.load
    monkeypatch.setattr(safefile, "load", lambda path: opened.append(path.name) or load(path))
    assert sorted(name for name, _ in model.stream(wanted)) == sorted(wanted)
    assert sorted(opened) == sorted({model.tensors[name].file for name in wanted})


def test_folders_that_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(BadArtefact, match=r"no config\.json"):
        open_model(str(folder))
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadArtefact, match="save_pretrained"):
        open_model(str(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(BadArtefact, match="names shards"):
        open_model(str(folder))
    with pytest.raises(UsageError, match="is no folder"):
        open_model(str(tmp_path / "absent"))

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(NetworkError, match="org/name is no folder here"):
        open_model("org/name")


def test_task_files(tmp_path: Path) -> None:
    task = load_task(str(choice_task(tmp_path / "choice.jsonl")), "validation", 5)
    assert (task.kind, len(task.items), task.items[1].answer, len(task.items[1].choices)) == ("choice", 5, 1, 3)
    assert load_task(str(likelihood_task(tmp_path / "text.jsonl")), "test", 99).kind == "likelihood"
    labels = label_task(tmp_path / "labels.json")
    validation = load_task(str(labels), "validation", 99)
    assert (validation.name, validation.items[0].text) == ("tiny#validation", sentence(100))
    assert load_task(f"{labels}#test", "validation", 99).items[0].text == sentence(200)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no lines of JSON"),
        ('{"prompt": "a"}', "question 2 has neither"),
        ('{"prompt": "a", "choices": ["b"], "answer": 0}', "two or more"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "question 2: the answer"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": true}', "question 2: the answer"),
        ('{"text": "a b"}', "mixes questions"),
    ],
)
def test_damaged_task_files(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n' + line)
    with pytest.raises(BadArtefact, match=message):
        load_task(str(path), "validation", 9)


def test_tasks_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_task(str(tmp_path / "absent.jsonl"), "validation", 9)
    with pytest.raises(UsageError, match="unknown part 'dev'"):
        load_task(f"{label_task(tmp_path / 'labels.json')}#dev", "validation", 9)
    with pytest.raises(UsageError, match="has no parts"):
        load_task(f"{likelihood_task(tmp_path / 'text.jsonl')}#train", "validation", 9)
    one = likelihood_task(tmp_path / "one.jsonl", count=1)
    with pytest.raises(UsageError, match="at least two"):
        load_task(str(one), "validation", 9)
    task = load_task(str(likelihood_task(tmp_path / "text.jsonl")), "validation", 9)
    with pytest.raises(UsageError, match="no accuracy"):
        metric_of(task, ScoreConfig(metric="accuracy"))


def test_choices_and_texts_are_scored_by_their_own_tokens(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "gpt2", "gpt2")
    subject = Causal(folder, {})
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    config = ScoreConfig(batch_size=5)

    def likelihood(text: str, judged: int) -> torch.Tensor:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            log_probability = model(ids).logits[0, :-1].log_softmax(-1)
        return log_probability.gather(-1, ids[0, 1:, None])[-judged:].mean()

    task = load_task(str(choice_task(tmp_path / "choice.jsonl")), "validation", 9)
    outcome = subject.answer(task, config)
    for i, item in enumerate(task.items):
        scores = torch.stack([likelihood(item.text + c, len(c.split())) for c in item.choices])
        assert outcome.answers[i] == int(scores.argmax())
        assert outcome.correct[i] == (int(scores.argmax()) == item.answer)
        assert outcome.log_probability[i] == pytest.approx(scores.log_softmax(-1)[item.answer].item(), abs=1e-4)
    texts = load_task(str(likelihood_task(tmp_path / "text.jsonl")), "validation", 9)
    outcome = subject.answer(texts, config)
    assert outcome.log_probability[3] == pytest.approx(likelihood(texts.items[3].text, 5).item(), abs=1e-4)
    assert outcome.answers == ()


def test_a_subject_takes_values_and_refuses_tensors_that_are_no_parameter(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "bert", "bert")
    name = "encoder.layer.0.attention.self.query.weight"
    value = safefile.load(folder / "model.safetensors")[0][name]
    subject = Encoder(folder, {name: value})
    task = load_task(str(label_task(tmp_path / "labels.json")), "validation", 99)
    before = subject.answer(task, ScoreConfig())
    subject.take({name: value.flip(0)})
    assert subject.answer(task, ScoreConfig()).change(before) > 1e-4
    subject.take({name: value})
    assert subject.answer(task, ScoreConfig()) == before
    with pytest.raises(UsageError, match="is no parameter of the loaded BertModel"):
        Encoder(folder, {name: value + 1.0})
    with pytest.raises(UsageError, match="is no parameter"):
        Encoder(folder, {"elsewhere.0.weight": value})


def scored(name: str, kind: Any, right: int, seed: int | None = None) -> Scored:
    correct = tuple(i < right for i in range(200))
    log_probability = tuple(0.0 if c else -1.0 for c in correct)
    return Scored(name, kind, Outcome(log_probability, tuple(int(c) for c in correct), correct), 0.1, 1.0, seed)


def test_the_verdict_is_strict() -> None:
    original = scored("original", "original", 100)
    noise, junk = scored("noise-0", "noise", 199, 0), scored("reconstruction", "reconstruction", 200)
    same, better, slightly = (scored(f"candidate-{r}", "candidate", r, 0) for r in (100, 150, 101))
    models = [original, junk, same, noise]
    assert cards.select(models, "accuracy") is original  # controls are never written, ties go to the original
    said = cards.verdict(models, original, "accuracy", None)
    assert said["sentence"].startswith("Keep the original: none of 1 candidates")
    assert "worse than Gaussian noise" in said["sentence"]
    models = [original, better]
    assert cards.select(models, "accuracy") is better
    assert cards.verdict(models, better, "accuracy", None)["improved"]
    said = cards.verdict([original, slightly], slightly, "accuracy", None)
    assert not said["improved"]
    assert said["sentence"].startswith("Keep the original: candidate-101 was best")
    said = cards.verdict(models, better, "accuracy", (original.outcome, better.outcome))  # held out says no
    assert (said["improved"], said["decided_on"]) == (False, "test")
    many = [original, better, *(scored(f"c{i}", "candidate", 90, i) for i in range(9))]
    assert cards.verdict(many, better, "accuracy", None)["validation_level"] == pytest.approx(0.995)


def test_answers_that_are_not_numbers_lose() -> None:
    broken = Outcome((float("nan"), float("-inf")), (0, 0), (False, False))
    assert broken.items("likelihood").tolist() == [-1e4, -1e4]
