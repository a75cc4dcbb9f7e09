"""What retrieval is worth: a million synthetic entries beside FAISS, and real adapters beside the oracle.

    python scripts/bench/retrieve.py synthetic              # minutes, and 5 GB of memory
    python scripts/bench/retrieve.py twins DATA WORK
    python scripts/bench/retrieve.py choice DATA WORK GENERATOR      # can be stopped and resumed
    python scripts/bench/retrieve.py render                 # its section of docs/results.md, from the saved JSON only

DATA has ``text_tasks`` and ``lora_zoo`` as for ``compose.py``; WORK is a folder for the collected zoo; GENERATOR that
of ``solve.py``, which has an adapter for all tasks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package
OUT = ROOT / "docs" / "results" / "retrieve"
PAGE = ROOT / "docs" / "results.md"
START, END = "<!-- retrieval: start -->", "<!-- retrieval: end -->"
app = typer.Typer(add_completion=False, no_args_is_help=True)
Data = Annotated[Path, typer.Argument(help="Folder with text_tasks and lora_zoo.")]
Work = Annotated[Path, typer.Argument(help="Folder for the collected zoo.")]


def _save(name: str, content: Any) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(json.dumps(content, indent=1) + "\n")


@app.command()
def synthetic(
    entries: int = 1_000_000,
    size: int = 384,
    factory: Annotated[str, typer.Option(help="FAISS index; by size if left out.")] = "",
    effort: int = 64,
    build_threads: int = 1,
) -> None:
    """Recall, time and overhead of one kind of index."""
    from scripts.bench.retrieve_synthetic import measure

    found = measure(entries, size, factory or None, effort, build_threads)
    print(json.dumps(found, indent=1))
    _save(f"synthetic-{found['factory'].replace(',', '-')}-{size}.json", found)


@app.command()
def twins(data: Data, work: Work) -> None:
    """Recall@1 of the same task's adapter."""
    import torch

    from scripts.bench.retrieve_adapters import twins as measure

    torch.set_num_threads(1)
    _save("twins.json", measure(data, work))


@app.command()
def choice(
    data: Data, work: Work, generator: Annotated[Path, typer.Argument(help="Folder of the generator of solve.py.")]
) -> None:
    """Accuracy lost against the oracle on held-out tasks."""
    import torch

    from scripts.bench.retrieve_choice import measure

    torch.set_num_threads(1)
    measure(data, work, generator, OUT / "choice.json")


@app.command()
def render() -> None:
    """Write the section of docs/results.md and leave everything else on the page as it is."""
    from scripts.bench.retrieve_render import section

    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    text = section(OUT)
    PAGE.write_text(f"{before.rstrip()}\n\n{START}\n{text}{END}\n{after.lstrip()}")


if __name__ == "__main__":
    app()
