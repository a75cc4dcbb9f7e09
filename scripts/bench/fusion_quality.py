"""How much of the gap to a fine-tuned strong model does weak-to-strong decoding close?

    python scripts/bench/fusion_models.py TEXTS WORK            # train the models, once
    python scripts/bench/fusion_quality.py run TEXTS WORK       # docs/results/fusion_quality.json
    python scripts/bench/fusion_quality.py render               # the part of docs/results.md, from saved JSON only

Answers are scored given their true prefix: the log-probability of each token, and whether greedy decoding would choose
it. The weight of the static rule is chosen on validation items; test items are read once, at the end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package
sys.path.append(str(ROOT / "scripts" / "bench"))
RESULTS = ROOT / "docs" / "results"
STATIC = (0.5, 0.75, 1.0, 1.5, 2.0)
START, END = "<!-- fusion: start -->", "<!-- fusion: end -->"
MULTI: dict[str, tuple[str, dict[str, Any]]] = {
    "one at a time (paper)": ("dynamic", {}),
    "joint (ours)": ("joint", {}),
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


def _single(work: Path, task: str, seed: int, parts: dict[str, list]) -> dict[str, Any]:
    import torch

    from weightgen import WeakToStrong
    from weightgen.decode.scoring import score_items

    expert = _load(work, f"small-{task}-{seed}")
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
    }
    scores = {name: _summary(score) for name, score in score_items(model, parts["test"], methods).items()}
    ceiling = WeakToStrong(_load(work, f"large-{task}-0"), [(expert, model.models[2])])
    scores["ceiling"] = _summary(score_items(ceiling, parts["test"], {"ceiling": "strong"})["ceiling"])
    # Answers that are made, not scored: speculative decoding must give the same text.
    import time

    from weightgen.decode.speculative import speculate

    same, seconds = 0, {"plain": 0.0, "speculative": 0.0}
    torch.manual_seed(0)
    chosen = parts["test"][:6]
    for prompt, answer in chosen:
        ids = torch.tensor([prompt])
        texts = []
        for name, options in (("plain", {}), ("speculative", {"custom_generate": speculate})):
            started = time.process_time()
            texts.append(model.generate(ids, max_new_tokens=min(len(answer), 48), do_sample=False, **options))
            seconds[name] += time.process_time() - started
        same += int(texts[0].shape == texts[1].shape and bool((texts[0] == texts[1]).all()))
    return {
        "task": task,
        "seed": seed,
        "static_best": best,
        "scores": scores,
        "speculative": {"items": len(chosen), "same": same, "seconds": seconds},
    }


def _several(work: Path, tasks: list[str], seed: int, parts: dict[str, dict[str, list]]) -> dict[str, Any]:
    from weightgen import WeakToStrong
    from weightgen.decode.scoring import score_items

    anchor = _load(work, "small")
    experts = [(_load(work, f"small-{task}-{seed}"), anchor) for task in tasks]
    model = WeakToStrong(_load(work, "large"), experts)
    found = {}
    for task in tasks:
        _say(f"several experts: {task}, seed {seed}")
        found[task] = {n: _summary(s) for n, s in score_items(model, parts[task]["test"][:100], MULTI).items()}
    return {"seed": seed, "tasks": tasks, "scores": found}


@app.command()
def run(
    texts: Annotated[Path, typer.Argument(help="folder of the texts")],
    work: Annotated[Path, typer.Argument(help="folder of the trained models")],
    items: Annotated[int, typer.Option(help="test items a task at most")] = 300,
    tasks: Annotated[str, typer.Option(help="tasks, separated by commas")] = "play,code,math,operation",
    seeds: Annotated[str, typer.Option(help="seeds of the experts")] = "0,1,2",
) -> None:
    """Score every task and seed whose models are there; results that are saved already are kept."""
    from fusion_models import encode, task_items, tokenizer_of

    tokenizer = tokenizer_of(work, texts)
    wanted = tasks.split(",")
    parts: dict[str, dict[str, list]] = {}
    for task in wanted:
        found = task_items(texts, task)
        sizes = {"val": min(100, items), "test": items}
        parts[task] = {part: encode(tokenizer, found[part])[:size] for part, size in sizes.items()}
    folder = RESULTS / "fusion_quality"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in map(int, seeds.split(",")):
        for task in wanted:
            target = folder / f"{task}-{seed}.json"
            if not target.is_file() and (work / f"small-{task}-{seed}").is_dir():
                _say(f"{task}, seed {seed}")
                _write(target, _single(work, task, seed, parts[task]))
        target = folder / f"several-{seed}.json"
        if not target.is_file() and all((work / f"small-{t}-{seed}").is_dir() for t in wanted):
            _write(target, _several(work, wanted, seed, parts))
    sizes: dict[str, Any] = {n: sum(p.numel() for p in _load(work, n).parameters()) for n in ("small", "large")}
    records = sorted(work.glob("*-*-*/training.json"))
    sizes["items_read"] = {path.parent.name: json.loads(path.read_text())["items"] for path in records}
    _write(folder / "models.json", sizes)


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
    from fusion_tables import section

    text = section(RESULTS)
    page = ROOT / "docs" / "results.md"
    before, _, rest = page.read_text().partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before.rstrip()}\n\n{START}\n{text}\n{END}{after if after.strip() else chr(10)}")


if __name__ == "__main__":
    app()
