"""IGPG on digits: how good its networks are, whether writing word by word adds anything, and what it costs.

    python scripts/bench/igpg_digits.py run       # a few minutes a seed on 2 cores; can be stopped and resumed
    python scripts/bench/igpg_digits.py render    # the section of docs/results.md, from the saved JSON only

The zoos and held-out subsets of a seed are those of scripts/bench/d2nwg_digits.py. Everything is judged on the held-out
subsets, with the examples of the first draw; nothing is chosen on them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from weightgen.conditioners.joint import ConditionTokens
    from weightgen.evaluation.setting import Setting
    from weightgen.generators.igpg import IGPG

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one may be named like a package
RESULTS = ROOT / "docs" / "results"
CANDIDATES = 8
TEMPERATURES = (0.1, 0.25, 0.5, 1.0, 1.5)
START, END = "<!-- igpg_digits: start -->", "<!-- igpg_digits: end -->"
TEMPLATE = """{start}
## IGPG on digits

Made by `python scripts/bench/igpg_digits.py render` from the JSON under `docs/results/igpg_digits/`. {runs} full
run(s) from an empty folder, judged as D2NWG above and beside it on the same zoos of seed(s) {seeds}. A network is a
line of {words} words of 8 bits ({bits_weight:.2f} bits a weight); no gradient step is taken on the new task.

{main}

Networks that fail: {failures:.2f} %. Distance to the nearest training network: {distance_ratio:.2f} times the zoo's
own.
Parameters: {parameters:,}. A network takes {milliseconds:.1f} ms in batches of {batch}.

### Does the writer add anything

8 networks a held-out task, the first draw of the examples. The refinement sees the right examples in all rows of the
first column; the second is what the words stand for by themselves. A writer whose words or layers depend on each other
loses when they are mixed; one whose networks follow from the examples alone does not.

{writer}

Bits a word of held-out networks (8 is uniform): {held_out_bits}.

### Temperature

{temperature}

### Speed

Words a second with the cache, batches of {batch}, one thread: {ours:,.0f}, and {theirs:,.0f} with `generate` of
transformers on a Llama of the same size and vocabulary with the same prefix and the same number of new tokens:
{ratio:.2f} of it (median of {rounds} alternating rounds). IGPG's count includes the restriction to legal words and
everything that places need.
{end}
"""
app = typer.Typer(add_completion=False, no_args_is_help=True)


def _shuffled(values: Tensor, groups: Tensor, seed: int) -> Tensor:
    """Mix words among the networks of one task: words of one group stay together.

    Args:
        values: words, [tasks candidates words].
        groups: number of the group of every word.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    mixed = values.clone()
    for group in groups.unique():
        order = torch.rand(values.shape[:2], generator=generator).argsort(1)
        here = groups == group
        mixed[..., here] = values[..., here].gather(1, order[..., None].expand(-1, -1, int(here.sum())))
    return mixed


def _measure(generator: IGPG, setting: Setting) -> dict[str, Any]:
    """Rows about the writer itself, on the held-out tasks."""
    import torch

    from weightgen.evaluation.novelty import novelty
    from weightgen.generators.prior import draw
    from weightgen.types import Condition
    from zoo.seeds import seed_of

    layout, tokenizer = setting.raw.layout, generator.problem.tokenizer
    form = generator.problem.form(layout)
    assert form is not None
    assert form.reference is not None
    condition = Condition(setting.examples(0))
    line, tasks = generator.line(layout), len(setting.tasks)
    rng = torch.Generator().manual_seed(seed_of("igpg bench"))
    uniform = torch.rand(tasks * CANDIDATES, len(line), generator=rng)

    encoded = generator.conditioner(condition.repeat(CANDIDATES))

    def networks(words: Tensor, refined: bool = True) -> dict[str, Tensor]:
        values = generator.read(words.flatten(0, 1), layout, encoded if refined else None)
        return tokenizer.tensors(values.unflatten(0, (tasks, CANDIDATES)), layout)

    def accuracy(words: Tensor, refined: bool = True) -> float:
        return setting.accuracy(networks(words, refined)).mean().item()

    sweep = {}
    sampling, reference = generator.config.sampling, form.reference
    written = torch.empty(0)
    for temperature in dict.fromkeys((sampling.temperature, *TEMPERATURES)):
        warm = sampling.model_copy(update={"temperature": temperature})
        words = generator.prior.write(line, encoded, uniform, warm).unflatten(0, (tasks, CANDIDATES))
        new = novelty(setting, networks(words), reference)
        kept = ("distance_ratio", "candidate_spread", "oracle_spread", "disagreement", "oracle_disagreement")
        sweep[str(temperature)] = {
            "accuracy": accuracy(words),
            "mixed_words": accuracy(_shuffled(words, torch.arange(len(line)), 1)),
            "mixed_layers": accuracy(_shuffled(words, line.position[:, 0], 1)),
            **{name: new[name] for name in kept},
        }
        written = words if temperature == sampling.temperature else written

    train = tokenizer.values(setting.aligned.tensors, layout)
    known = generator.words(train, layout)
    size = len(generator.vocabulary)
    counts = torch.stack([torch.bincount(column, minlength=size) for column in known.T]).float()
    used = torch.bincount(known.flatten(), minlength=size).float()
    unigram = draw((counts + 1e-9).log().expand(tasks * CANDIDATES, -1, -1), uniform)
    anywhere = draw((used + 1e-9).log().expand(tasks * CANDIDATES, len(line), -1), uniform)
    mean = generator.words(train.mean(0, keepdim=True), layout).expand(tasks * CANDIDATES, -1)

    oracles = setting.oracles.aligned(reference)
    held = tokenizer.values(oracles.tensors, layout)
    number = {task.name: i for i, task in enumerate(setting.tasks)}
    own = torch.tensor([number[record.task or ""] for record in oracles.records])
    bits = generator.score(held, condition.map(lambda part: part[own]), layout)
    wrong = generator.score(held, condition.map(lambda part: part[(own + tasks // 2) % tasks]), layout)
    held_words = generator.words(held, layout)
    smoothed = ((counts + 0.1) / (counts + 0.1).sum(-1, keepdim=True)).log2()
    by_place = -smoothed.gather(1, held_words.T).mean()
    by_book = -((used + 0.1) / (used + 0.1).sum()).log2()[held_words].mean()

    def of_oracles(known: ConditionTokens | None) -> float:
        back = tokenizer.tensors(generator.read(held_words, layout, known), layout)
        found = setting.accuracy({k: v[None].expand(tasks, *v.shape) for k, v in back.items()})
        return found[own, torch.arange(len(own))].mean().item()

    rows = {
        "written": written,
        "mixed_words": _shuffled(written, torch.arange(len(line)), 1),
        "mixed_layers": _shuffled(written, line.position[:, 0], 1),
        "other_task": written.roll(tasks // 2, 0),
        "marginals": unigram.unflatten(0, (tasks, CANDIDATES)),
        "unigram": anywhere.unflatten(0, (tasks, CANDIDATES)),
        "mean_network": mean.unflatten(0, (tasks, CANDIDATES)),
    }
    writer = {name: [accuracy(words, refined) for refined in (True, False)] for name, words in rows.items()}
    told = generator.conditioner(condition.map(lambda part: part[own]))
    return {
        "words": len(line),
        "bits_a_weight": generator.codec.bits_a_weight(*_template(generator)),
        "temperature": sampling.temperature,
        "sweep": sweep,
        "writer": {**writer, "codec": [of_oracles(told), of_oracles(None)]},
        "bits": {
            "prior": bits.mean().item(),
            "wrong_condition": wrong.mean().item(),
            "marginals": by_place.item(),
            "unigram": by_book.item(),
        },
    }


def _template(generator: IGPG) -> tuple[Tensor, Tensor]:
    frame = generator.frame(generator.problem.forms[0].layout)
    return frame.mask, frame.position


def _speed(generator: IGPG, setting: Setting, batch: int = 32, rounds: int = 5) -> dict[str, Any]:
    """Words a second beside transformers' own loop, in alternating rounds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from weightgen.types import Condition
    from zoo.threads import torch_threads

    layout = generator.problem.forms[0].layout
    line, body = generator.line(layout), generator.prior.body.config
    condition = Condition(setting.examples(0)).map(lambda part: part[torch.arange(batch) % len(setting.tasks)])
    encoded = generator.conditioner(condition)
    uniform = torch.rand(batch, len(line), generator=torch.Generator().manual_seed(0))
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    torch.manual_seed(0)
    same: dict[str, Any] = {name: getattr(body, name) for name in sizes}
    same["attn_implementation"] = body._attn_implementation
    plain: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(generator.vocabulary), bos_token_id=None, eos_token_id=None, pad_token_id=0, **same)
    ).eval()
    warm = {"do_sample": True, "temperature": generator.config.sampling.temperature, "top_k": 0}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    with torch.no_grad(), torch_threads(1):
        for i in range(rounds + 1):  # the first warms up
            start = time.perf_counter()
            generator.prior.write(line, encoded, uniform, generator.config.sampling)
            middle = time.perf_counter()
            made = plain.generate(
                inputs_embeds=encoded.tokens, max_new_tokens=len(line), min_new_tokens=len(line), **warm
            )
            end = time.perf_counter()
            assert made.shape[1] == len(line)
            if i:
                times["ours"].append(middle - start)
                times["theirs"].append(end - middle)
    count = batch * len(line)
    ratios = sorted(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
    middle_of = {name: count / sorted(found)[rounds // 2] for name, found in times.items()}
    return {"batch": batch, "rounds": rounds, **middle_of, "ratio": ratios[rounds // 2]}


def _one(seed: int, work: Path) -> dict[str, Any]:
    import torch

    from weightgen import jobs
    from weightgen.checkpoint import load_generator
    from weightgen.evaluation.setting import make_setting
    from weightgen.generators.igpg import IGPG
    from zoo.zoo import Zoo

    zoo, out = work / f"zoo-{seed}", work / f"igpg-{seed}"
    jobs.build_zoo(ROOT / "configs" / "digits.yaml", zoo, [f"seed={seed}"])
    jobs.train(ROOT / "configs" / "igpg-digits.yaml", zoo, out / "generator", [f"seed={seed}"])
    if not (out / "card.json").is_file():
        jobs.evaluate(out / "generator", zoo, out, candidates=CANDIDATES)
    card = json.loads((out / "card.json").read_text())
    card.pop("tasks")
    generator = load_generator(out / "generator")
    assert isinstance(generator, IGPG)
    with Zoo.open(zoo) as opened, torch.no_grad():
        setting = make_setting(opened, generator.problem.forms[0].reference, generator.config.shots)
        card["writing"] = _measure(generator, setting)
        card["speed"] = _speed(generator, setting)
    return card


@app.command()
def run(
    work: Annotated[Path, typer.Option(help="Folder for zoos and generators.")] = Path("runs/bench-digits"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
) -> None:
    """Run every seed whose result is not there yet."""
    for seed in map(int, seeds.split(",")):
        target = RESULTS / "igpg_digits" / f"full-{seed}.json"
        if not target.is_file():
            print(f"seed {seed}", file=sys.stderr, flush=True)
            card = _one(seed, work)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(card, indent=1) + "\n")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _percent(values: list[float]) -> str:
    middle = _mean(values)
    spread = (sum((v - middle) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
    return f"{100 * middle:.1f} ± {100 * spread:.1f}" if len(values) > 1 else f"{100 * middle:.1f}"


def _main_table(cards: list[dict], beside: list[dict]) -> list[str]:
    lines = ["| method | accuracy, % | IGPG minus this | best of 8 | what it is |", "|---|---|---|---|---|"]
    rows = [(name, [card["rows"][name] for card in cards]) for name in cards[0]["rows"]]
    rows += [("D2NWG", [card["rows"]["generated"] for card in beside])] if beside else []
    for name, found in sorted(rows, key=lambda row: -_mean([r["mean"] for r in row[1]])):
        gaps = [r["generated_minus_this"] for r in found if "generated_minus_this" in r]
        gap = ""
        if gaps:
            gap = (
                f"{100 * _mean([g['mean'] for g in gaps]):+.1f} (lowest bound {100 * min(g['low'] for g in gaps):+.1f})"
            )
        best = _percent([r["best_of"]["mean"] for r in found]) if "best_of" in found[0] else ""
        label = "**IGPG**" if name == "generated" else name
        what = "the other generator, same zoos and tasks" if name == "D2NWG" else found[0]["what"]
        lines.append(f"| {label} | {_percent([r['mean'] for r in found])} | {gap} | {best} | {what} |")
    for name in cards[0]["controls"]:
        found = [card["controls"][name] for card in cards]
        lines.append(f"| control: {name} | {_percent([r['mean'] for r in found])} | | | {found[0]['what']} |")
    return lines


def _writer_table(writing: list[dict]) -> list[str]:
    what = {
        "written": "as written, word by word",
        "mixed_words": "every word from another network of the task: independent draws from the writer's marginals",
        "mixed_layers": "every layer from another network of the task: coherence between layers",
        "other_task": "the words of another task: what the refinement does by itself",
        "marginals": "every place drawn from the words that training networks have there",
        "unigram": "every place drawn from all words of training networks",
        "mean_network": "the mean of all training networks, after the codec",
        "codec": "networks trained on the held-out tasks, after the codec",
    }
    lines = ["| what is written | accuracy, % | words alone, % |", "|---|---|---|"]
    for name, text in what.items():
        cells = [_percent([w["writer"][name][column] for w in writing]) for column in (0, 1)]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


def _sweep_table(writing: list[dict]) -> list[str]:
    lines = [
        "| temperature | accuracy, % | words mixed, % | layers mixed, % | distance ratio | candidate spread (trained: "
        f"{_mean([next(iter(w['sweep'].values()))['oracle_spread'] for w in writing]):.2f}) |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(writing[0]["sweep"], key=float):
        found = [w["sweep"][name] for w in writing]
        parts = [_percent([f[key] for f in found]) for key in ("accuracy", "mixed_words", "mixed_layers")]
        parts += [f"{_mean([f[key] for f in found]):.2f}" for key in ("distance_ratio", "candidate_spread")]
        mark = " (default)" if float(name) == writing[0]["temperature"] else ""
        lines.append(f"| {name}{mark} | " + " | ".join(parts) + " |")
    return lines


@app.command()
def render() -> None:
    """Write the section of docs/results.md."""
    paths = sorted((RESULTS / "igpg_digits").glob("full-*.json"))
    if not paths:
        raise SystemExit("error: there are no results; remedy: python scripts/bench/igpg_digits.py run")
    cards = [json.loads(path.read_text()) for path in paths]
    twins = [RESULTS / "d2nwg_digits" / path.name for path in paths]
    beside = [json.loads(path.read_text()) for path in twins if path.is_file()]
    writing, speed = [card["writing"] for card in cards], [card["speed"] for card in cards]
    bits = {name: _mean([w["bits"][name] for w in writing]) for name in writing[0]["bits"]}
    text = TEMPLATE.format(
        start=START,
        end=END,
        runs=len(cards),
        seeds=", ".join(path.stem.removeprefix("full-") for path in paths),
        words=writing[0]["words"],
        bits_weight=_mean([w["bits_a_weight"] for w in writing]),
        main="\n".join(_main_table(cards, beside if len(beside) == len(cards) else [])),
        failures=100 * _mean([card["rows"]["generated"]["failures"] for card in cards]),
        distance_ratio=_mean([card["novelty"]["distance_ratio"] for card in cards]),
        parameters=cards[0]["parameters"],
        milliseconds=1e3 * _mean([card["cost"]["seconds_a_network"] for card in cards]),
        batch=speed[0]["batch"],
        rounds=speed[0]["rounds"],
        writer="\n".join(_writer_table(writing)),
        held_out_bits=(
            f"{bits['prior']:.2f} with the right examples, {bits['wrong_condition']:.2f} with those of another task, "
            f"{bits['marginals']:.2f} by the frequencies of each place, {bits['unigram']:.2f} by those of all places"
        ),
        temperature="\n".join(_sweep_table(writing)),
        **{name: _mean([s[name] for s in speed]) for name in ("ours", "theirs", "ratio")},
    )
    page = ROOT / "docs" / "results.md"
    old = page.read_text()
    if START in old:
        before, rest = old.split(START)
        new = before + text.rstrip("\n") + rest.split(END)[1]
    else:
        new = old.rstrip("\n") + "\n\n" + text
    page.write_text(new)


if __name__ == "__main__":
    app()
