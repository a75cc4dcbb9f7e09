"""What weak-to-strong decoding costs, as ratios inside of one run, and how exact its fit is.

    python scripts/bench/fusion.py       # docs/results/fusion_speed.json; minutes on one core

Times are processor times of this process alone, medians of alternating rounds, so that other work on the machine does
not favour one side. The models have random weights: what they say is of no matter for what they cost.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package
RESULTS = ROOT / "docs" / "results"
TARGETS = {"fused_step": 1.10, "solver": 5.0, "shared": 0.75, "speculative": 1.0, "within_1e-4": 0.99}
PARTS = ("solver", "shared", "step", "exactness")
app = typer.Typer(add_completion=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _medians(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, one in work.items():
            started = time.process_time()
            one()
            if number:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _llama(width: int, layers: int, size: int = 32_000, seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
        initializer_range=0.05,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def _related(rows: int, size: int, moved: float, seed: int, dtype: Any) -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Any:
        return scale * torch.randn(rows, size, generator=generator, dtype=dtype)

    strong = noise(3)
    anchor = 0.7 * strong + noise(2)
    return strong, anchor + noise(moved), anchor


def _naive(strong: Any, expert: Any, anchor: Any, alphas: Any) -> Any:
    """The paper's loop as it is written down: two divergences of softmaxes at each of 21 points."""
    import torch

    p, q, target = (x.log_softmax(-1) for x in (strong, anchor, expert))
    forward, backward = (target.exp() * (target - q)).sum(-1), (q.exp() * (q - target)).sum(-1)
    values = []
    for alpha in alphas:
        fused = (strong + alpha * (expert - anchor)).log_softmax(-1)
        first = (fused.exp() * (fused - p)).sum(-1) - forward
        second = (p.exp() * (p - fused)).sum(-1) - backward
        values.append(first**2 + second**2)
    return torch.stack(values, dim=-1)


def solver(rounds: int, turns: list[dict[str, float]]) -> dict[str, Any]:
    """The fit alone at 32k x 32 rows beside the loop; the ratio is the median over the runs of this script so far.

    How fast the loop is depends on where its memory comes from, which differs from run to run.
    """
    import torch

    from weightgen.fusion import fuse

    models = _related(32, 32_000, 1.0, 0, torch.float32)
    alphas = 0.1 * torch.arange(21)
    pairs = list(zip(*(x.split(2) for x in models), strict=True))
    work = {
        "loop": lambda: _naive(*models, alphas),
        "loop, two rows at a time": lambda: [_naive(*pair, alphas) for pair in pairs],
        "dynamic": lambda: fuse("dynamic", models[0], [models[1]], [models[2]]),
        "dynamic, grid": lambda: fuse("dynamic", models[0], [models[1]], [models[2]], parity=True),
        "static": lambda: fuse("static", models[0], [models[1]], [models[2]]),
    }
    seconds = _medians(work, rounds)
    turns = [*turns, {name: seconds[name] / seconds["dynamic"] for name in ("loop", "loop, two rows at a time")}]
    ratios = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    return {"seconds": seconds, "ratio": ratios["loop"], "ratios": ratios, "turns": turns}


def exactness(rows: int, work: Path | None, texts: Path | None) -> dict[str, Any]:
    """Identities, grid and optimum against direct divergences: on random logits of several kinds, and on real ones."""
    import torch

    kinds = {f"random, moved by {m}": _related(rows, 500, m, 1, torch.float64) for m in (0.02, 0.2, 0.5, 1.0, 2.0, 3.0)}
    if work is not None and texts is not None:
        sys.path.append(str(ROOT / "scripts" / "bench"))
        from fusion_models import GROUPS

        kinds |= {f"real, {task}": _real(work, texts, task, rows) for task in GROUPS["unseen"].tasks}
    found = [{"kind": kind} | _exact(*logits) for kind, logits in kinds.items()]
    return {"rows": rows, "kinds": found}


def _exact(strong: Any, expert: Any, anchor: Any) -> dict[str, float]:
    import torch

    from weightgen.fusion.solver import cumulants, objective, solve, targets

    def share(of: Any) -> float:
        return of.double().mean().item()

    d = expert - anchor
    goal = targets(anchor, d)
    alphas = 0.1 * torch.arange(21, dtype=torch.float64)
    direct = _naive(strong, expert, anchor, alphas)
    identity = (objective(*cumulants(strong, d)[:2], *goal) - direct).abs().max().item()
    grid, _ = solve(strong, d, *goal, refine=False)
    alpha, value = solve(strong, d, *goal)
    best, several = finest(strong, expert, anchor)
    narrow = [x.float() for x in (strong, expert, anchor)]
    near = narrow[1] - narrow[2]
    single, _ = solve(narrow[0], near, *targets(narrow[2], near))
    coarse, _ = solve(narrow[0], near, *targets(narrow[2], near), refine=False)
    wide = narrow[0].double(), narrow[1].double(), narrow[2].double()
    best32, _ = finest(*wide)
    return {
        "identity": identity,
        "same_grid_point": share((grid * 10).round().long() == direct.argmin(-1)),
        "same_grid_point_float32": share((coarse * 10).round().long() == _naive(*wide, alphas).argmin(-1)),
        "median_error": (alpha - best).abs().median().item(),
        "within_1e-4": share((alpha - best).abs() < 1e-4),
        "within_1e-4_float32": share((single - best32).abs() < 1e-4),
        "not_deeper": share(value <= _naive(strong, expert, anchor, [best[:, None]])[:, 0] * (1 + 1e-4) + 1e-12),
        "clamped": share((best < 1e-3) | (best > 2 - 1e-3)),
        "bimodal": share(several),
    }


def _real(work: Path, texts: Path, task: str, rows: int) -> tuple[Any, Any, Any]:
    """Logits of trained models at answer tokens of validation items, in float64."""
    import torch
    from fusion_models import GROUPS, tokenizer_of
    from fusion_texts import encode, task_items
    from transformers import LlamaForCausalLM

    items = encode(tokenizer_of(GROUPS["unseen"], work, texts), task_items(texts, task)["val"])[:40]
    found = []
    for name in ("large", f"small-{task}-many-0", "small"):
        model = LlamaForCausalLM.from_pretrained(work / "unseen" / name).eval()
        logits = [model(torch.tensor([p + a])).logits[0, len(p) - 1 : -1] for p, a in items]
        found.append(torch.cat(logits)[:: max(1, sum(map(len, logits)) // rows)][:rows].double())
    return found[0], found[1], found[2]


def finest(strong: Any, expert: Any, anchor: Any) -> tuple[Any, Any]:
    """Optimum by a fine search of the direct objective, and where it has more than one minimum."""
    import torch

    points = torch.linspace(0, 2, 201, dtype=torch.float64)
    curve = _naive(strong, expert, anchor, points)
    valleys = ((curve[:, 1:-1] < curve[:, :-2]) & (curve[:, 1:-1] < curve[:, 2:])).sum(-1)
    best = points[curve.argmin(-1)]
    low, high = (best - 0.01).clamp(min=0), (best + 0.01).clamp(max=2)
    for _ in range(28):
        left, right = low + (high - low) * 0.381966, low + (high - low) * 0.618034
        at = [_naive(strong, expert, anchor, [a[:, None]])[:, 0] for a in (left, right)]
        nearer = at[0] < at[1]
        low, high = torch.where(nearer, low, left), torch.where(nearer, right, high)
    return (low + high) / 2, valleys > 1


def step(rounds: int, width: int, layers: int) -> dict[str, Any]:
    """One fused decoding step at a vocabulary of 32k and batch 8, beside the models' own steps."""
    import torch

    from weightgen import WeakToStrong

    strong, expert, anchor = _llama(width, layers), _llama(256, 4, seed=1), _llama(256, 4, seed=2)
    fused = WeakToStrong(strong, [(expert, anchor)])
    ids = torch.randint(0, 32_000, (8, 32))
    found: dict[str, Any] = {}
    members = {"strong": strong, "expert": expert, "anchor": anchor, "fused": fused}
    caches = {}
    for name, model in members.items():
        caches[name] = model(ids, use_cache=True, logits_to_keep=1).past_key_values

    def one(name: str) -> Callable[[], object]:
        def call() -> None:
            members[name](ids[:, :1], past_key_values=caches[name], use_cache=True, logits_to_keep=1)
            caches[name].crop(-1)

        return call

    seconds = _medians({name: one(name) for name in members}, rounds)
    floor = seconds["strong"] + seconds["expert"] + seconds["anchor"]
    found["seconds"] = seconds
    found["ratio"] = seconds["fused"] / floor
    count = {name: sum(p.numel() for p in model.parameters()) for name, model in members.items()}
    found["parameters"] = count
    found["memory_ratio"] = count["fused"] / (count["strong"] + count["expert"] + count["anchor"])
    return found


def shared(rounds: int) -> dict[str, Any]:
    """An adapter and its base as one batch, beside running them one after the other."""
    import torch
    from peft import LoraConfig, get_peft_model

    from weightgen.decode.passes import Member, plan_passes

    base = _llama(768, 8)
    config = LoraConfig(r=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config).eval()
    members = [Member(adapted, "default"), Member(adapted)]
    together, _ = plan_passes(members)
    apart, _ = plan_passes(members, shared=False)
    quicker, _ = plan_passes(members, shared=False)
    for one in apart:  # as the models run by themselves
        one.forward = lambda _model=one.model, **inputs: _model(**inputs)
    found: dict[str, Any] = {}
    for rows in (1, 4, 8):
        ids = torch.randint(0, 32_000, (rows, 32))
        runs: dict[str, Callable[[], object]] = {}
        for name, passes in (("together", together), ("apart", apart), ("apart, few rows", quicker)):
            caches = [one.new_cache(None) for one in passes]
            for one, cache in zip(passes, caches, strict=True):
                one.run(ids, None, None, cache, 1, True)

            def call(passes: Any = passes, caches: Any = caches, ids: Any = ids) -> None:
                for one, cache in zip(passes, caches, strict=True):
                    one.run(ids[:, :1], None, None, cache, 1, False)
                    cache.crop(-1)

            runs[name] = call
        double = ids.repeat(2, 1)
        names = ["default"] * rows + ["__base__"] * rows
        mixed = adapted(double, adapter_names=names, use_cache=True).past_key_values

        def library(double: Any = double, names: Any = names, mixed: Any = mixed) -> None:
            adapted(double[:, :1], adapter_names=names, past_key_values=mixed, use_cache=True)
            mixed.crop(-1)

        seconds = _medians({**runs, "adapter_names of PEFT": library}, rounds)
        ratios = {name: seconds["together"] / seconds[name] for name in ("apart", "apart, few rows")}
        found[str(rows)] = {"seconds": seconds, "ratio": ratios["apart"], "ratios": ratios}
    return found


@app.command()
def run(
    rounds: Annotated[int, typer.Option(help="measurements; medians are compared")] = 9,
    rows: Annotated[int, typer.Option(help="rows of each kind for exactness")] = 300,
    width: Annotated[int, typer.Option(help="width of the strong model")] = 1024,
    layers: Annotated[int, typer.Option(help="layers of the strong model")] = 12,
    work: Annotated[Path | None, typer.Option(help="folder of trained models, for real logits and texts")] = None,
    texts: Annotated[Path | None, typer.Option(help="folder of the texts that they were trained on")] = None,
    only: Annotated[
        str, typer.Option(help="parts to measure anew; the others are kept")
    ] = "solver,shared,step,exactness",
) -> None:
    """Measure everything and save it."""
    import torch

    torch.set_num_threads(1)
    saved = RESULTS / "fusion_speed.json"
    result: dict[str, Any] = json.loads(saved.read_text()) if saved.is_file() else {}
    result["targets"] = TARGETS
    with torch.no_grad():
        for name, one in (
            ("solver", lambda: solver(rounds, result.get("solver", {}).get("turns", []))),
            ("shared", lambda: shared(rounds)),
            ("step", lambda: step(rounds, width, layers)),
            ("exactness", lambda: exactness(rows, work, texts)),
        ):
            if name not in only.split(","):
                continue
            _say(name)
            result[name] = one()
            RESULTS.mkdir(parents=True, exist_ok=True)
            side = RESULTS / ".fusion_speed.json"
            side.write_text(json.dumps(result, indent=1) + "\n")
            side.rename(RESULTS / "fusion_speed.json")
            print(json.dumps({name: result[name]}, indent=1))


if __name__ == "__main__":
    app()
