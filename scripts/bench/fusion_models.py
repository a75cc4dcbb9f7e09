"""Train the small causal models that ``fusion_quality.py`` decodes with: one tokenizer and two sizes a group of tasks.

    python scripts/bench/fusion_models.py TEXTS WORK    # 20 to 30 minutes a group on one free core; resumes

TEXTS is a folder with ``books/*.txt``, ``wikitext2/valid.txt``, ``tinyshakespeare/input.txt``, ``gsm8k/train.jsonl``
and ``test.jsonl``, ``code/CodeAlpaca-20K.json.gz`` and ``asdiv/ASDiv.xml``, as their publishers distribute them. The
base models of the group ``unseen`` read books, articles, questions of word problems and sources of Python's standard
library; its tasks are of other domains: plays, answers to programming tasks, worked solutions, and naming the operation
of a word problem. Those of ``known`` read the library, worked solutions in prose and speeches of plays; its tasks are
of the same domains in another form: a function for its description, solutions with calculator calls, and missing lines.
``wide`` is ``known`` with a larger strong model and with base models that read three times as much.
Small experts are fine-tuned on few or many examples of a task, with several seeds; the large model fine-tuned on as
many is the ceiling. Where it is checked, a fine-tuning keeps the weights that are best on validation items.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from fusion_texts import LENGTH, base_text, encode, held_out_text, task_items
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
END, PAD = "<|end|>", "<|pad|>"
FEW, FEW_STEPS = 64, 48
"""Different examples that are read with ``few``, and steps of 16 of them."""
BASE_RATE = 3e-3
RATES = {"small": 2e-3, "large": 1e-3}
CHECKS, CHECK_ITEMS = 8, 64
IGNORED = -100


@dataclass(frozen=True)
class Group:
    """Base models of two sizes, and tasks that they are fine-tuned on.

    Attributes:
        name: folder of its models and results.
        tasks: names in ``fusion_texts.py``.
        sizes: width, layers, inner width and heads of ``small`` and ``large``.
        base_steps: steps of 2,048 tokens for the base models.
        many_steps: steps of 16 of all examples of a task with ``many``; 80 where nothing is said.
        checked: the amounts whose fine-tuning keeps the weights that are best on validation items.
        seeds: of the experts, by amount; a ceiling has one.
    """

    name: str
    tasks: tuple[str, ...]
    sizes: dict[str, tuple[int, int, int, int]]
    base_steps: int
    many_steps: dict[str, dict[str, int]]
    checked: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]


GROUPS = {
    "unseen": Group(
        "unseen",
        ("play", "code", "math", "operation"),
        {"small": (32, 2, 96, 4), "large": (128, 3, 320, 4)},
        base_steps=1500,
        many_steps={"small": {"play": 200}, "large": {"operation": 100, "play": 200, "code": 200, "math": 200}},
        checked=("few",),
        seeds={"few": (0, 1, 2), "many": (0,)},
    ),
    "known": Group(
        "known",
        ("function", "calculator", "infill"),
        {"small": (48, 2, 128, 4), "large": (192, 4, 512, 3)},
        base_steps=1600,
        many_steps={"small": {}, "large": {}},
        checked=("many",),
        seeds={"many": (0, 1, 2)},
    ),
    "wide": Group(
        "wide",
        ("function", "calculator", "infill"),
        {"small": (48, 2, 128, 4), "large": (256, 5, 704, 4)},
        base_steps=4500,
        many_steps={"small": {}, "large": {}},
        checked=("many",),
        seeds={"many": (0, 1, 2)},
    ),
}


def tokenizer_of(group: Group, work: Path, texts: Path) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer that all models of a group share, trained on what the base models read."""
    folder = work / group.name / "tokenizer"
    if not folder.is_dir():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END, PAD], initial_alphabet=alphabet)
        made.train_from_iterator(base_text(texts, group.name), trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
        ).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def pad(rows: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids and labels of some encoded items; prompts and padding are not learned."""
    width = max(len(p) + len(a) for p, a in rows)
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        tokens = torch.tensor(prompt + answer)
        ids[row, : len(tokens)] = tokens
        labels[row, len(prompt) : len(tokens)] = tokens[len(prompt) :]
    return ids, labels


def validation_loss(model: LlamaForCausalLM, rows: list[tuple[list[int], list[int]]], pad_id: Any) -> float:
    """Mean loss of an answer token."""
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for start in range(0, len(rows), 16):
            ids, labels = pad(rows[start : start + 16], pad_id)
            tokens = int((labels != IGNORED).sum())
            total += model(input_ids=ids, labels=labels).loss.item() * tokens
            count += tokens
    return total / count


def _fit(
    model: LlamaForCausalLM,
    batches: list[tuple[Tensor, Tensor]],
    lr: float,
    name: str,
    check: Callable[[LlamaForCausalLM], float] | None = None,
) -> float:
    """Train; with a check, go back to the weights with the least value of it, which is returned."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    warm = max(len(batches) // 20, 10)
    every = max(1, len(batches) // CHECKS) if check else 50
    started, mean, least, best = time.time(), float("nan"), float("inf"), {}
    for step, (ids, labels) in enumerate(batches):
        scale = min((step + 1) / warm, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / len(batches))))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if (step + 1) % every:
            continue
        found = check(model) if check else mean
        if found < least:
            least, best = found, {k: v.clone() for k, v in model.state_dict().items()}
        print(f"{name}: {step + 1}/{len(batches)}, loss {found:.3f}, {time.time() - started:.0f} s", file=sys.stderr)
    if check:
        model.load_state_dict(best)
    return least if check else mean


def _keep(model: LlamaForCausalLM, folder: Path, record: dict) -> None:
    side = folder.with_name(f".{folder.name}")
    model.save_pretrained(side)
    (side / "training.json").write_text(json.dumps(record))
    side.rename(folder)


def _rows(tokenizer: PreTrainedTokenizerFast, documents: Iterable[str]) -> Tensor:
    """Documents one after the other, each with an end token, cut into rows of equal length."""
    stream = torch.tensor([t for text in documents for t in [*tokenizer.encode(text), tokenizer.eos_token_id]])
    return stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)


def _train_base(group: Group, texts: Path, work: Path, size: str) -> None:
    folder = work / group.name / size
    if folder.is_dir():
        return
    tokenizer = tokenizer_of(group, work, texts)
    rows, steps, batch = _rows(tokenizer, base_text(texts, group.name)), group.base_steps, 2048 // LENGTH
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(steps * batch // len(rows) + 1)])
    batches = [(rows[i], rows[i]) for i in order[: steps * batch].view(steps, batch)]
    width, layers, inner, heads = group.sizes[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    record: dict[str, Any] = {"tokens": steps * 2048, "stream": rows.numel()}
    record["loss"] = _fit(model, batches, BASE_RATE, f"{group.name} {size}")
    if group.name != "unseen":
        held = {kind: _rows(tokenizer, [text]).tolist() for kind, text in held_out_text(texts).items()}
        record["held_out"] = {
            kind: validation_loss(model, [(row[:1], row[1:]) for row in found], tokenizer.pad_token_id)
            for kind, found in held.items()
        }
    _keep(model, folder, record)


def _tune(group: Group, texts: Path, work: Path, size: str, task: str, amount: str, seed: int) -> None:
    folder = work / group.name / f"{size}-{task}-{amount}-{seed}"
    if folder.is_dir():
        return
    tokenizer = tokenizer_of(group, work, texts)
    parts = task_items(texts, task)
    rows, few = encode(tokenizer, parts["train"]), amount == "few"
    rng = random.Random(f"{task} {seed}" if few else f"{size} {task} {seed}")
    if few:  # small and large read the same examples
        rows = rng.sample(rows, FEW)
    steps = FEW_STEPS if few else group.many_steps[size].get(task, 80)
    chosen = [row for _ in range(steps * 16 // len(rows) + 1) for row in rng.sample(rows, len(rows))][: steps * 16]
    batches = [pad(chosen[i : i + 16], tokenizer.pad_token_id) for i in range(0, len(chosen), 16)]
    model = LlamaForCausalLM.from_pretrained(work / group.name / size)
    check = None
    if amount in group.checked:
        held = encode(tokenizer, parts["val"])[:CHECK_ITEMS]

        def check(one: LlamaForCausalLM) -> float:
            return validation_loss(one, held, tokenizer.pad_token_id)

    loss = _fit(model, batches, RATES[size], f"{group.name} {folder.name}", check)
    _keep(model, folder, {"items": len(chosen), "different": len(rows), "loss": loss})


def main(
    texts: Annotated[Path, typer.Argument(help="folder of the texts")],
    work: Annotated[Path, typer.Argument(help="folder for the models")],
    groups: Annotated[str, typer.Option(help="groups of tasks")] = ",".join(GROUPS),
) -> None:
    """Train everything that is not there yet."""
    torch.set_num_threads(1)
    for name in groups.split(","):
        group = GROUPS[name]
        (work / name).mkdir(parents=True, exist_ok=True)
        for size in group.sizes:
            _train_base(group, texts, work, size)
        for amount, seeds in group.seeds.items():
            for task in group.tasks:
                _tune(group, texts, work, "large", task, amount, 0)
                for seed in seeds:
                    _tune(group, texts, work, "small", task, amount, seed)


if __name__ == "__main__":
    typer.run(main)
