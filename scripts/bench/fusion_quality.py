"""How much of the gap to a fine-tuned strong model does weak-to-strong decoding close?

    python scripts/bench/fusion_models.py TEXTS WORK            # train the models, once
    python scripts/bench/fusion_quality.py run TEXTS WORK       # docs/results/fusion_quality/
    python scripts/bench/fusion_quality.py speculative TEXTS WORK
    python scripts/bench/fusion_quality.py render               # the part of docs/results.md, from saved JSON only

Answers are scored given their true prefix: the log-probability of each token, and whether greedy decoding would choose
it. The weight of the static rule is chosen on validation items; test items are read once, at the end.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fusion_models import Group

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package
sys.path.append(str(ROOT / "scripts" / "bench"))
RESULTS = ROOT / "docs" / "results"
STATIC = (0.5, 0.75, 1.0, 1.5, 2.0)
PAIRS = {"unseen": (("code", "math"), ("play", "operation"), ("math", "operation"), ("play", "code"))}
MULTI: dict[str, tuple[str, dict[str, Any]]] = {
    "one at a time (paper)": ("dynamic", {}),
    "joint (ours)": ("joint", {}),
    "joint, full trust": ("joint", {"trust": 1.0}),
    "joint, anchor competes": ("joint", {"anchor": True}),
    "joint, equal weights": ("joint", {"trust": 0.0}),
    "joint, no fit of the distance": ("joint", {"refit": False}),
    "static, all at 1": ("static", {"alpha": 1.0}),
}
app = typer.Typer(add_completion=False, no_args_is_help=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _load(work: Path, name: str) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(work / name).eval()


def _summary(score: Any) -> dict[str, list[float]]:
    return {
        "log_probability": score.log_probability.tolist(),
        "hits": score.hits.tolist(),
        "tokens": score.tokens.tolist(),
        "alpha": score.alphas.sum(-1).tolist(),
    }


def _single(work: Path, task: str, amount: str, seed: int, parts: dict[str, list]) -> dict[str, Any]:
    from weightgen import WeakToStrong
    from weightgen.decode.scoring import score_items

    expert = _load(work, f"small-{task}-{amount}-{seed}")
    model = WeakToStrong(_load(work, "large"), [(expert, _load(work, "small"))])
    choices = {f"{alpha}": ("static", {"alpha": alpha}) for alpha in STATIC}
    on_val = score_items(model, parts["val"], choices)
    best = max(STATIC, key=lambda a: on_val[f"{a}"].log_probability.sum().item())
    methods: dict[str, Any] = {
        "strong": "strong",
        "anchor": "anchor",
        "expert": "expert",
        "static 1": ("static", {"alpha": 1.0}),
        "static best": ("static", {"alpha": best}),
        "dynamic": ("dynamic", {}),
        "dynamic, grid": ("dynamic", {"parity": True}),
        "pooled (ours)": ("pooled", {}),
        "average of strong and expert": ("average", {"weight": 0.5}),
    }
    scores = {name: _summary(score) for name, score in score_items(model, parts["test"], methods).items()}
    ceiling = WeakToStrong(_load(work, f"large-{task}-{amount}-0"), [(expert, model.models[2])])
    scores["ceiling"] = _summary(score_items(ceiling, parts["test"], {"ceiling": "strong"})["ceiling"])
    return {"task": task, "amount": amount, "seed": seed, "static_best": best, "scores": scores}


def _several(work: Path, tasks: list[str], amount: str, parts: dict[str, dict[str, list]]) -> dict[str, Any]:
    from weightgen import WeakToStrong
    from weightgen.decode.scoring import score_items

    anchor = _load(work, "small")
    experts = [(_load(work, f"small-{task}-{amount}-0"), anchor) for task in tasks]
    model = WeakToStrong(_load(work, "large"), experts)
    halves = {task: parts[task]["test"][: len(parts[task]["test"]) // 2] for task in tasks}
    mixed = [item for task in tasks for item in halves[task]]
    scores = {name: _summary(score) for name, score in score_items(model, mixed, MULTI).items()}
    first = len(halves[tasks[0]])
    shares = {task: slice(0, first) if i == 0 else slice(first, None) for i, task in enumerate(tasks)}
    split = {t: {n: {k: v[part] for k, v in s.items()} for n, s in scores.items()} for t, part in shares.items()}
    return {"tasks": tasks, "amount": amount, "scores": split}


def _parts(texts: Path, work: Path, items: int, group: Group) -> dict[str, dict[str, list]]:
    from fusion_models import tokenizer_of
    from fusion_texts import encode, task_items

    tokenizer, parts = tokenizer_of(group, work, texts), {}
    for task in group.tasks:
        found = task_items(texts, task)
        sizes = {"val": min(100, items), "test": items}
        parts[task] = {part: encode(tokenizer, found[part])[:size] for part, size in sizes.items()}
    return parts


@app.command()
def run(
    texts: Annotated[Path, typer.Argument(help="folder of the texts")],
    work: Annotated[Path, typer.Argument(help="folder of the trained models")],
    items: Annotated[int, typer.Option(help="test items a task at most")] = 150,
    groups: Annotated[str, typer.Option(help="groups of tasks")] = "unseen,known,wide",
) -> None:
    """Score every task and seed whose models are there; results that are saved already are kept."""
    import torch
    from fusion_models import GROUPS

    torch.set_num_threads(1)
    for name in groups.split(","):
        group, models, folder = GROUPS[name], work / name, RESULTS / "fusion_quality" / name
        parts = _parts(texts, work, items, group)
        folder.mkdir(parents=True, exist_ok=True)
        for amount, seeds in group.seeds.items():
            for task, seed in product(group.tasks, seeds):
                target = folder / f"{task}-{amount}-{seed}.json"
                if not target.is_file() and (models / f"small-{task}-{amount}-{seed}").is_dir():
                    _say(target.stem)
                    _write(target, _single(models, task, amount, seed, parts[task]))
        for tasks in PAIRS.get(name, ()):
            target = folder / f"several-{'-'.join(tasks)}.json"
            if not target.is_file() and all((models / f"small-{t}-many-0").is_dir() for t in tasks):
                _say(target.stem)
                _write(target, _several(models, list(tasks), "many", parts))
        sizes: dict[str, Any] = {n: sum(p.numel() for p in _load(models, n).parameters()) for n in group.sizes}
        sizes["base"] = {n: json.loads((models / n / "training.json").read_text()) for n in group.sizes}
        _write(folder / "models.json", sizes)


@app.command()
def speculative(
    texts: Annotated[Path, typer.Argument(help="folder of the texts")],
    work: Annotated[Path, typer.Argument(help="folder of the trained models")],
    group: Annotated[str, typer.Option(help="group of tasks")] = "known",
    answers: Annotated[int, typer.Option(help="answers a task")] = 4,
    rounds: Annotated[int, typer.Option(help="times that each is made; the least time counts")] = 3,
    length: Annotated[int, typer.Option(help="tokens an answer")] = 48,
) -> None:
    """Make answers plainly and speculatively, in turns: the same text, and how much processor time."""
    import time

    import torch
    from fusion_models import GROUPS

    from weightgen import WeakToStrong
    from weightgen.decode.speculative import speculate

    torch.set_num_threads(1)
    parts, models = _parts(texts, work, answers, GROUPS[group]), work / group
    strong, anchor, found = _load(models, "large"), _load(models, "small"), {}
    for task in GROUPS[group].tasks:
        model = WeakToStrong(strong, [(_load(models, f"small-{task}-many-0"), anchor)])
        seconds, same, tokens = {"plain": 0.0, "speculative": 0.0}, 0, 0
        for prompt, _ in parts[task]["test"]:
            ids, texts_made, times = torch.tensor([prompt]), {}, {"plain": [], "speculative": []}
            for _ in range(rounds):
                for name, options in (("plain", {}), ("speculative", {"custom_generate": speculate})):
                    started = time.process_time()
                    texts_made[name] = model.generate(ids, max_new_tokens=length, do_sample=False, **options)
                    times[name].append(time.process_time() - started)
            same += int(torch.equal(texts_made["plain"], texts_made["speculative"]))
            tokens += texts_made["plain"].shape[1] - ids.shape[1]
            seconds = {name: seconds[name] + min(times[name]) for name in seconds}
        ratio = seconds["speculative"] / seconds["plain"]
        found[task] = {"answers": answers, "same": same, "tokens": tokens, "seconds": seconds, "ratio": ratio}
        _say(f"{task}: {found[task]}")
    _write(RESULTS / "fusion_quality" / group / "speculative.json", found)


def _write(path: Path, value: Any) -> None:
    def short(item: Any) -> Any:
        if isinstance(item, float):
            return round(item, 4)
        if isinstance(item, list):
            return [short(i) for i in item]
        return {k: short(v) for k, v in item.items()} if isinstance(item, dict) else item

    path.write_text(json.dumps(short(value)) + "\n")


@app.command()
def render() -> None:
    """Write the part of docs/results.md between its markers, from the saved JSON alone."""
    from _page import put
    from fusion_tables import section

    put("fusion", section(RESULTS))


if __name__ == "__main__":
    app()
