"""Large-model mode on a real encoder: codec error, change of function, candidates, and noise of the same size.

    python scripts/bench/large.py run TASKS    # TASKS: folder with rt_polarity.json.gz and others; minutes on one core
    python scripts/bench/large.py render       # the measured part of docs/large.md, from the saved JSON only

The model is all-MiniLM-L6-v2. Candidates are chosen on training examples of a task and judged on its validation
examples; test examples are not touched. ``run`` goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package
RESULTS = ROOT / "docs" / "results" / "large"
PAGE = ROOT / "docs" / "large.md"
START, END = "<!-- measured: start -->", "<!-- measured: end -->"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
CONFIG = ROOT / "configs" / "explore-small.yaml"
LATENTS = (8, 64)  # beside that of the config
STRENGTHS = (("keep", 0.1), ("keep", 0.3), ("drop", 0.1), ("keep", 1.0), ("keep", 0.6), ("drop", 1.0))
ITEMS = 150
TASKS = ("rt_polarity",)
SETTINGS = (("keep", 0.3), ("drop", 0.1))
CANDIDATES = 6
VOCABULARY = 80_000
app = typer.Typer(add_completion=False, no_args_is_help=True)


def _once(name: str, make: Callable[[], Any]) -> None:
    target = RESULTS / f"{name}.json"
    if target.is_file():
        return
    print(f"measuring {name}", file=sys.stderr, flush=True)
    value = make()
    RESULTS.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(target)


def _explore(task: Path, work: Path, name: str, held_out: bool, *overrides: str) -> dict[str, Any]:
    from weightgen import jobs

    card = jobs.explore(
        MINILM,
        f"{task}#train",
        work / "minilm",
        config=CONFIG,
        test_data=f"{task}#validation" if held_out else None,
        overrides=overrides,
    ).to_json()
    card.pop("checkpoint")
    print(f"{name}: {card['verdict']['sentence']}", file=sys.stderr, flush=True)
    return card


def _codec(latent: int, work: Path) -> dict[str, Any]:
    """Reconstruction error by matrix, with a codec of another size."""
    from weightgen.large import sample
    from weightgen.large.chunks import read_chunks
    from weightgen.large.config import load_explore_config
    from weightgen.large.folder import open_model
    from weightgen.large.spectrum import choose
    from weightgen.large.train import encode, trained_model

    config = load_explore_config(CONFIG, [f"model.codec.latent={latent}", "diffusion.steps=1"])
    model = open_model(MINILM)
    chunks = read_chunks(model, choose(model, config.layers)[0], config.chunk)
    learned = trained_model(config, chunks, work / f"codec-{latent}")
    error = sample.reconstruct(learned, chunks, encode(learned, chunks))[1]
    return {"latent": latent, "columns": config.chunk.columns, "steps": config.codec.steps, "error": error}


def _memory() -> dict[str, Any]:
    """Peak memory of each step on a Llama of 0.5 GB in shards of 100 MB; alone in a fresh process."""
    import subprocess

    code = "import json, sys; sys.path.insert(0, sys.argv[1]); from scripts.bench.large import memory_run; memory_run()"
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def memory_run() -> None:
    """Make a random Llama in a child process, explore it in this one, print the card's memory as JSON."""
    import multiprocessing

    from weightgen import jobs

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        child = multiprocessing.get_context("spawn").Process(target=make_llama, args=(folder / "llama",))
        child.start()
        child.join()
        (folder / "task.jsonl").write_text("\n".join(json.dumps({"text": f"w{i} w{i + 1} w3 w4"}) for i in range(4)))
        overrides = ["sample.n=1", "sample.controls=0", "codec.steps=20", "diffusion.steps=20", "layers.top=4"]
        card = jobs.explore(
            folder / "llama", folder / "task.jsonl", folder / "out", config=CONFIG, overrides=overrides
        ).card
        chosen = sum(2 * layer["shape"][0] * layer["shape"][1] for layer in card["layers"]) / 2**20
        print(
            json.dumps(
                {
                    "memory_mb": card["memory_mb"],
                    "checkpoint_mb": card["checkpoint_mb"],
                    "chosen_mb": round(chosen, 1),
                    "shards": len(list((folder / "out").glob("*.safetensors"))),
                    "seconds": card["seconds"],
                }
            )
        )


def make_llama(folder: Path) -> None:
    """Random Llama of 254 M weights in bfloat16 with a word-level tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)


@app.command()
def run(
    tasks: Annotated[Path, typer.Argument(help="Folder of text classification tasks.")],
    work: Annotated[Path, typer.Option(help="Folder for generators and checkpoints.")] = Path("runs/bench-large"),
) -> None:
    """Measure whatever is not there yet."""
    import torch

    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    first = tasks / f"{TASKS[0]}.json.gz"
    for residual, strength in STRENGTHS:
        name = f"strength-{residual}-{strength}"
        changes = (
            f"sample.strength={strength}",
            f"sample.residual={residual}",
            "sample.n=2",
            f"score.max_items={ITEMS}",
        )
        _once(name, lambda name=name, changes=changes: _explore(first, work, name, False, *changes))
    for task, (residual, strength) in itertools.product(TASKS, SETTINGS):
        name, path = f"best-{task}-{residual}", tasks / f"{task}.json.gz"
        how = (f"sample.strength={strength}", f"sample.residual={residual}", f"score.max_items={ITEMS}")
        changes = (f"sample.n={CANDIDATES}", f"sample.controls={CANDIDATES}", *how)
        _once(name, lambda name=name, path=path, changes=changes: _explore(path, work, name, True, *changes))
    _once("memory", _memory)
    for latent in LATENTS:
        _once(f"codec-{latent}", lambda latent=latent: _codec(latent, work))


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _measured(name: str) -> bool:
    return (RESULTS / f"{name}.json").is_file()


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])


def _codec_table() -> str:
    card = _read(f"best-{TASKS[0]}-keep")
    error = {layer["name"]: layer["codec_error"] for layer in card["layers"]}
    found = [{"latent": card["config"]["model"]["codec"]["latent"], "error": error}]
    found += [_read(f"codec-{latent}") for latent in LATENTS if _measured(f"codec-{latent}")]
    width = card["config"]["chunk"]["columns"]
    names = list(found[0]["error"])
    head = "| matrix | " + " | ".join(f"{one['latent']} of {width}" for one in found) + " |"
    rows = [f"| `{name}` | " + " | ".join(f"{one['error'][name]:.3f}" for one in found) + " |" for name in names]
    return _table(head, rows)


def _spectrum_table() -> str:
    layers = _read(f"best-{TASKS[0]}-keep")["layers"]
    rows = [
        f"| `{layer['name']}` | {layer['spectrum']['outside']} of {min(layer['shape'])} | "
        f"{100 * layer['spectrum']['energy_share']:.1f} % |"
        for layer in layers
    ]
    return _table("| matrix | eigenvalues above the edge | energy above the edge |", rows)


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _strength_table() -> str:
    rows = []
    for residual, strength in sorted(STRENGTHS, reverse=True):
        if not _measured(f"strength-{residual}-{strength}"):
            continue
        card = _read(f"strength-{residual}-{strength}")
        cells = [residual, f"{strength}"]
        for kind in ("candidate", "noise"):
            some = [row for row in card["rows"] if row["kind"] == kind]
            if kind == "candidate":
                cells.append(f"{_mean(some, 'distance'):.3f}")
            cells += [
                f"{100 * _mean(some, 'agreement_with_original'):.1f}",
                f"{_mean(some, 'change_of_log_probability'):.4f}",
                f"{100 * _mean(some, 'mean'):.1f}",
            ]
        rows.append(f"| {' | '.join(cells)} |")
    head = "| residual | strength | change of weights | agreement, % | change, nats | accuracy, % | noise: agreement, %"
    return _table(head + " | noise: change, nats | noise: accuracy, % |", rows)


def _of(card: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in card["rows"] if row["name"] == name)


def _best_table() -> str:
    rows = []
    for task, (residual, strength) in itertools.product(TASKS, SETTINGS):
        if not _measured(f"best-{task}-{residual}"):
            continue
        card = _read(f"best-{task}-{residual}")
        original = _of(card, "original")
        some = [row for row in card["rows"] if row["kind"] == "candidate"]
        noise = [row for row in card["rows"] if row["kind"] == "noise"]
        best = _of(card, card["selected"])
        test = card["verdict"]["test_minus_original"]
        low, high = (100 * value for value in card["verdict"]["noise"]["candidates_minus_noise"][1:])
        rows.append(
            f"| {task} | {residual}, {strength} | {100 * original['mean']:.1f} | {100 * _mean(some, 'mean'):.1f} | "
            f"{100 * _mean(noise, 'mean'):.1f} | {low:+.2f} to {high:+.2f} | {card['selected']} | "
            f"{100 * best['mean']:.1f} | {100 * _of(card, 'reconstruction')['mean']:.1f} | "
            f"{100 * max(row['mean'] for row in noise):.1f} | "
            f"{100 * test[0]:+.1f} [{100 * test[1]:+.1f}, {100 * test[2]:+.1f}] | "
            f"{'yes' if card['verdict']['improved'] else 'no'} |"
        )
    head = f"| task | residual, strength | original | mean of {CANDIDATES} candidates | mean of as many of noise"
    head += " | candidates minus noise"
    return _table(
        head + " | best | its score | codec alone | best of noise | held out: minus original | better? |", rows
    )


def _memory_text() -> str:
    if not _measured("memory"):
        return "Memory on a larger model: not measured."
    memory = _read("memory")
    peak = {name: f"{value:.0f} MB" for name, value in memory["memory_mb"].items()}
    return (
        f"Peak memory on a random Llama of {memory['checkpoint_mb']:.0f} MB in {memory['shards']} shards, with chosen "
        f"matrices of {memory['chosen_mb']:.0f} MB:\n{peak['before']} after imports, {peak['learning']} up to the end "
        f"of training, {peak['scoring']} with the model loaded\nfor scoring, {peak['writing']} in all."
    )


@app.command()
def render() -> None:
    """Write the measured part of docs/large.md."""
    card = _read(f"best-{TASKS[0]}-keep")
    config = card["config"]
    text = f"""{START}
Made by `python scripts/bench/large.py render` from `docs/results/large/*.json`. Model: all-MiniLM-L6-v2 (22.7 M
weights), four matrices chosen by spectrum, `configs/explore-small.yaml`, {card["parameters"]:,} parameters in codec and
denoiser, one thread. Choice on training examples, report on validation examples; test examples untouched.

The matrices that `--layers auto --top 4` takes:

{_spectrum_table()}

Mean squared error of the codec in units of the variance of each matrix (1 is what predicting the mean gives), by
latent numbers a token of {config["chunk"]["columns"]} weights, {config["codec"]["steps"]} steps:

{_codec_table()}

Change of function by strength, {TASKS[0]}, {ITEMS} training examples, 2 candidates each, beside Gaussian noise of the
same size in every matrix. Accuracy of the original: {100 * _read("strength-keep-0.1")["rows"][0]["mean"]:.1f} %.

{_strength_table()}

Best of {CANDIDATES} candidates, accuracy in %; {ITEMS} examples decide, {ITEMS} others report:

{_best_table()}

{_memory_text()}
{END}"""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START, 1)
    PAGE.write_text(before + text + rest.split(END, 1)[1], encoding="utf-8")


if __name__ == "__main__":
    app()
