"""Adapters from a sentence: folders that PEFT loads, reloaded and compared before success is reported."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weightgen import __version__
from weightgen.checkpoint import load_generator, read_config, read_history
from weightgen.generate.card import adapter_card
from weightgen.generate.finetune import finetune_adapter
from weightgen.generate.target import RECEIPT, check_target, replaced
from weightgen.generate.task import GivenTask
from weightgen.generators import Generator
from weightgen.results import AdapterResult
from weightgen.subjects.texts import AdaptedEncoder, padded
from weightgen.types import Condition
from zoo import kinds, safefile
from zoo.build.encoder import EncoderConfig, TextEncoder
from zoo.errors import UsageError, WeightgenError
from zoo.types import Weights

TOLERANCE = 1e-3
"""Largest difference of a logit, of scale 20, between an adapter in memory and the same one loaded by PEFT."""


def condition_of(task: GivenTask, encoder: TextEncoder) -> Condition:
    """All that is known of one task, in words and as vectors of the frozen encoder."""
    text = task.text
    parts = {"description": [text.description] if text.description else [], "labels": text.labels, "texts": text.texts}
    vectors = {name: padded([encoder.encode(list(some))]) for name, some in parts.items() if some}
    return Condition(words=(text,), **vectors)  # pyright: ignore[reportArgumentType] - words are no vectors


def generate_adapters(
    folder: Path, task: GivenTask, out: Path, base: str | None, n: int, seed: int, finetune: int
) -> AdapterResult:
    """Generate, check and write adapters; see ``weightgen.jobs.generate``."""
    if n < 1:
        raise UsageError(f"cannot generate {n} adapters", "ask for at least one")
    if finetune and not task.texts:
        raise UsageError("there are no labelled examples to fine-tune on", "add --task FILE --use-labels N")
    check_target(out)
    generator = load_generator(folder)
    own = generator.problem.text_encoder
    if own is None:
        raise UsageError(f"the generator {folder} writes networks, no adapters", "give labelled examples with --data")
    encoder = TextEncoder(EncoderConfig(name=base or own, base_model=own if base is None else None))
    if (size := encoder.model.config.hidden_size) != generator.problem.text_size:
        raise UsageError(
            f"the generator was made for {own} of hidden size {generator.problem.text_size}, {base} has {size}",
            "give the base model that the generator was made for",
        )
    generator.attach(encoder)
    started = time.perf_counter()
    condition = condition_of(task, encoder)
    adapters = _sampled(generator, condition, n, seed, encoder.base_model)
    seconds = time.perf_counter() - started
    adapted = AdaptedEncoder(encoder, adapters[0].layout)
    curves: list[list[dict[str, float]]] = []
    for i in range(n if finetune else 0):
        adapters[i], curve = finetune_adapter(
            adapted, adapters[i], task.texts, task.y, task.text.labels, finetune, seed + i
        )
        curves.append(curve)
    scores = [_given_scores(adapted, adapter, task) for adapter in adapters]
    history = read_history(folder)
    about = {
        "base_model": encoder.base_model,
        "generator": generator.name,
        "generator_files": read_config(folder)["files"],
        "weightgen": __version__,
        "seed": seed,
        "parents": history.get("train_tasks", []),
        "license": history.get("license"),
        "expected": history.get("expected"),
        "task": task.about(),
        "finetune_steps": finetune,
    }
    names = ["."] if n == 1 else [f"adapter-{i:03d}" for i in range(n)]
    with replaced(out) as side:
        for i, (name, adapter) in enumerate(zip(names, adapters, strict=True)):
            (side / name).mkdir(exist_ok=True)
            one = {**about, "number": i, "given": scores[i], "curve": curves[i] if curves else None}
            write_checked(adapted, adapter, side / name, adapter_card(one), task)
            if n > 1:
                _receipt(side / name, one, ("adapter_config.json", "adapter_model.safetensors", "README.md"))
        files = sorted(path.name for path in side.iterdir())
        _receipt(side, {**about, "given": scores, "curves": curves}, files)
    return AdapterResult(tuple(out / name for name in names), tuple(scores), tuple(curves), seconds)


def _sampled(generator: Generator, condition: Condition, n: int, seed: int, base_model: str) -> list[Weights]:
    """Adapters whose configuration names the base they were asked for."""
    adapters = generator.sample(condition, generator.layout_for(condition), n, seed)
    result = []
    for adapter in adapters:
        config = {**adapter.layout.config["peft"], "base_model_name_or_path": base_model}
        layout = replace(adapter.layout, base_model=base_model, config={"peft": config})
        safefile.check_finite(adapter.tensors, "the generated adapter")
        result.append(Weights(layout, adapter.tensors))
    return result


def _receipt(folder: Path, about: dict[str, Any], files: Sequence[str]) -> None:
    receipt = {
        "description": about["task"]["description"],
        "task": about["task"]["name"],
        "generated": {**about, "files": list(files)},
    }
    (folder / RECEIPT).write_text(json.dumps(receipt, indent=1), encoding="utf-8")


@torch.no_grad()
def _given_scores(adapted: AdaptedEncoder, adapter: Weights, task: GivenTask) -> dict[str, float] | None:
    """Accuracy of the base and of the adapter on the labelled examples, if there are any."""
    if not task.texts:
        return None
    encoder = adapted.encoder
    base = _logits(encoder, task)
    with adapted.applied(adapter.tensors):
        found = _logits(encoder, task)
    return {
        "base_accuracy": round((base.argmax(1) == task.y).float().mean().item(), 4),
        "accuracy": round((found.argmax(1) == task.y).float().mean().item(), 4),
    }


def _logits(encoder: TextEncoder, task: GivenTask) -> torch.Tensor:
    texts = task.texts or task.text.texts[:16] or (task.text.description,)
    return encoder.config.scale * encoder.encode(texts) @ encoder.encode(task.text.labels or texts).T


@torch.no_grad()
def write_checked(adapted: AdaptedEncoder, adapter: Weights, folder: Path, card: str, task: GivenTask) -> None:
    """Write one adapter, load it with PEFT, and compare what it computes."""
    from peft import PeftModel

    kinds.get("lora").write(adapter, folder, {"README.md": card.encode()})
    encoder = adapted.encoder
    with adapted.applied(adapter.tensors):
        wanted = _logits(encoder, task)
    plain = encoder.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what the libraries plan among themselves
            encoder.model = PeftModel.from_pretrained(plain, str(folder)).eval()
        found = _logits(encoder, task)
        encoder.model.unload()
    finally:
        encoder.model = plain
    worst = (wanted - found).abs().max().item()
    if not worst <= TOLERANCE:
        raise WeightgenError(
            f"the adapter computes something else after PEFT loaded it: logits differ by up to {worst:.2g}",
            "report this with the versions of peft and transformers",
        )
