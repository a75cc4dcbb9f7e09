"""Train the small causal models that ``fusion_quality.py`` decodes with: one tokenizer, two sizes, four tasks.

    python scripts/bench/fusion_models.py TEXTS WORK    # about 20 minutes on one free core with bf16; resumes

TEXTS is a folder with ``books/*.txt``, ``wikitext2/valid.txt``, ``tinyshakespeare/input.txt``, ``gsm8k/train.jsonl``
and ``test.jsonl``, ``code/CodeAlpaca-20K.json.gz`` and ``asdiv/ASDiv.xml``, as their publishers distribute them. The
base models read books, articles, questions of word problems and sources of Python's standard library; the tasks are
unseen: plays, answers to programming tasks, worked solutions, and naming the operation of a word problem. Small
experts are fine-tuned on few and on many examples of a task, with several seeds; the large model fine-tuned on as many
is the ceiling. Every fine-tuning keeps the weights that are best on validation items.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import sys
import sysconfig
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, LENGTH, STDLIB_BYTES = 2048, 256, 4_000_000
END, PAD = "<|end|>", "<|pad|>"
SIZES = {"small": (32, 2, 96, 4), "large": (128, 3, 320, 4)}
TASKS = ("play", "code", "math", "operation")
SEEDS = (0, 1, 2)
AMOUNTS = ("few", "many")
FEW, FEW_STEPS = 64, 48
"""Different examples that are read with ``few``, and steps of 16 of them; the best weights on validation are kept."""
MANY_STEPS = {"small": {"play": 200}, "large": {"operation": 100, "play": 200, "code": 200, "math": 200}}
"""Steps of 16 of all examples with ``many``; 80 where nothing is said."""
BASE_STEPS, BASE_RATE = 1500, 3e-3
RATES = {"small": 2e-3, "large": 1e-3}
CHECKS, CHECK_ITEMS = 8, 64
OPERATIONS = ("Addition", "Subtraction", "Multiplication", "Common-Division")
IGNORED = -100


@dataclass(frozen=True)
class Item:
    """One example: the model is trained and judged on the answer alone."""

    prompt: str
    answer: str


def _windows(text: str, size: int = 700) -> list[Item]:
    lines, windows, held = text.splitlines(keepends=True), [], ""
    for line in lines:
        held += line
        if len(held) >= size:
            windows.append(Item("", held))
            held = ""
    return windows


def task_items(texts: Path, task: str) -> dict[str, list[Item]]:
    """Examples of a task in disjoint parts ``train``, ``val`` and ``test``."""
    rng = random.Random(f"parts of {task}")
    if task == "play":
        items = _windows((texts / "tinyshakespeare" / "input.txt").read_text())
        cut = int(0.85 * len(items))  # later acts are held out, not windows between those that were read
        return {"train": items[:cut], "val": items[cut : cut + 100], "test": items[cut + 100 :]}
    if task == "math":
        parts: dict[str, list[Item]] = {}
        for name in ("train", "test"):
            rows = [json.loads(line) for line in (texts / "gsm8k" / f"{name}.jsonl").read_text().splitlines()]
            parts[name] = [Item(row["question"] + "\nSolution: ", row["answer"]) for row in rows]
        return {"train": parts["train"][:-300], "val": parts["train"][-300:], "test": parts["test"]}
    if task == "code":
        rows = json.loads(gzip.decompress((texts / "code" / "CodeAlpaca-20K.json.gz").read_bytes()))
        items = [Item(row["prompt"] + "\nAnswer:\n", row["response"]) for row in rows if "\n" in row["response"]]
        counts = (300, 600)
    else:
        problems = ElementTree.parse(texts / "asdiv" / "ASDiv.xml").iter("Problem")
        fields = [[(p.findtext(k) or "").strip() for k in ("Body", "Question", "Solution-Type")] for p in problems]
        items = [Item(f"{b} {q}\nOperation:", f" {kind.lower()}") for b, q, kind in fields if kind in OPERATIONS]
        counts = (200, 500)
    rng.shuffle(items)
    val, test = counts
    return {"train": items[val + test :], "val": items[:val], "test": items[val : val + test]}


def base_text(texts: Path) -> list[str]:
    """Documents that the base models read."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(p for p in library.rglob("*.py") if "site-packages" not in p.parts and "test" not in p.parts)
    random.Random("sources").shuffle(sources)
    documents = [path.read_text() for path in sorted((texts / "books").glob("*.txt"))]
    documents.append((texts / "wikitext2" / "valid.txt").read_text())
    questions = [item.prompt.removesuffix("\nSolution: ") for item in task_items(texts, "math")["train"]]
    documents += ["\n\n".join(questions[start : start + 20]) for start in range(0, len(questions), 20)]
    size = 0
    for path in sources:
        if size > STDLIB_BYTES:
            break
        source = path.read_text(encoding="utf-8", errors="ignore")[:40_000]
        documents.append(source)
        size += len(source)
    return documents


def tokenizer_of(work: Path, texts: Path) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer that all models share, trained on what the base models read."""
    folder = work / "tokenizer"
    if not folder.is_dir():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END, PAD], initial_alphabet=alphabet)
        made.train_from_iterator(base_text(texts), trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
        ).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerFast, items: list[Item]) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer tokens of the items that fit; an answer to a prompt ends with the end token."""
    encoded = []
    for item in items:
        prompt = tokenizer.encode(item.prompt) if item.prompt else []
        answer = tokenizer.encode(item.answer) + ([tokenizer.eos_token_id] if item.prompt else [])
        if not item.prompt:
            prompt, answer = answer[:16], answer[16:LENGTH]
        if len(prompt) + len(answer) <= LENGTH:
            encoded.append((prompt, answer))
    return encoded


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


def _train_base(texts: Path, work: Path, size: str, steps: int, lr: float) -> None:
    folder = work / size
    if folder.is_dir():
        return
    tokenizer = tokenizer_of(work, texts)
    stream = torch.tensor([t for text in base_text(texts) for t in [*tokenizer.encode(text), tokenizer.eos_token_id]])
    rows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    generator = torch.Generator().manual_seed(0)
    batch = 2048 // LENGTH
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(steps * batch // len(rows) + 1)])
    batches = [(rows[i], rows[i]) for i in order[: steps * batch].view(steps, batch)]
    width, layers, inner, heads = SIZES[size]
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
    loss = _fit(model, batches, lr, size)
    _keep(model, folder, {"tokens": steps * 2048, "stream": len(stream), "loss": loss})


def _tune(texts: Path, work: Path, size: str, task: str, amount: str, seed: int) -> None:
    folder = work / f"{size}-{task}-{amount}-{seed}"
    if folder.is_dir():
        return
    tokenizer = tokenizer_of(work, texts)
    parts = task_items(texts, task)
    rows, few = encode(tokenizer, parts["train"]), amount == "few"
    rng = random.Random(f"{task} {seed}" if few else f"{size} {task} {seed}")
    if few:  # small and large read the same examples
        rows = rng.sample(rows, FEW)
    steps = FEW_STEPS if few else MANY_STEPS[size].get(task, 80)
    chosen = [row for _ in range(steps * 16 // len(rows) + 1) for row in rng.sample(rows, len(rows))][: steps * 16]
    batches = [pad(chosen[i : i + 16], tokenizer.pad_token_id) for i in range(0, len(chosen), 16)]
    model = LlamaForCausalLM.from_pretrained(work / size)
    check = None
    if few:
        held = encode(tokenizer, parts["val"])[:CHECK_ITEMS]

        def check(one: LlamaForCausalLM) -> float:
            return validation_loss(one, held, tokenizer.pad_token_id)

    loss = _fit(model, batches, RATES[size], folder.name, check)
    _keep(model, folder, {"items": len(chosen), "different": len(rows), "loss": loss})


def main(
    texts: Annotated[Path, typer.Argument(help="folder of the texts")],
    work: Annotated[Path, typer.Argument(help="folder for the models")],
    seeds: Annotated[int, typer.Option(help="seeds of the experts of few examples; the others have one")] = len(SEEDS),
) -> None:
    """Train everything that is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        _train_base(texts, work, size, BASE_STEPS, BASE_RATE)
    for amount in AMOUNTS:
        for task in TASKS:
            for size in SIZES:
                _tune(texts, work, size, task, amount, SEEDS[0])
    for seed in SEEDS[1:seeds]:
        for task in TASKS:
            _tune(texts, work, "small", task, "few", seed)


if __name__ == "__main__":
    typer.run(main)
