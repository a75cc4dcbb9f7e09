"""The commands of weak-to-strong decoding: a thin typer shell over ``weightgen.jobs``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from weightgen.console import run_job
from weightgen.options import Json
from zoo.errors import UsageError

doctor_app = typer.Typer(help="Find out whether something will work before spending time on it.", no_args_is_help=True)

Strong = Annotated[str, typer.Option("--strong", metavar="MODEL", help="Folder or Hub id of the strong model.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]


def _setting(text: str) -> tuple[str, object]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"setting {text!r} has not the form key=value", "write for example --set alpha=0.8")
    return key, yaml.safe_load(value)


def decode(
    strong: Strong,
    expert: Annotated[list[str], typer.Option("--expert", metavar="MODEL", help="Small expert, or a PEFT adapter.")],
    anchor: Annotated[list[str], typer.Option("--anchor", metavar="MODEL", help="What the expert was tuned from.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to go on from; - reads it from stdin.")],
    rule: Annotated[
        str, typer.Option("--rule", help="static, dynamic, pooled, joint, contrastive, average or dexperts.")
    ] = "dynamic",
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the rule, e.g. alpha=0.8.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: most probable token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same answer.")] = 0,
    speculative: Annotated[
        bool, typer.Option("--speculative", help="The expert drafts, the others verify; same distribution.")
    ] = False,
    alpha_trace: Annotated[
        Path | None, typer.Option("--alpha-trace", metavar="PNG", help="Picture of the weights over the tokens.")
    ] = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> int:
    """Answer a prompt with a strong model that small experts steer; the answer is printed while it is made."""
    from weightgen import jobs

    out, streamed = sys.stdout, not as_json

    def show(piece: str) -> None:
        print(piece, end="", file=out, flush=True)

    on_text: Callable[[str], None] | None = show if streamed else None

    def job(_: object) -> jobs.DecodeResult:
        if len(anchor) not in (1, len(expert)):
            raise UsageError(f"{len(expert)} experts have {len(anchor)} anchors", "give one anchor, or one an expert")
        anchors = anchor * len(expert) if len(anchor) == 1 else anchor
        return jobs.decode(
            strong,
            list(zip(expert, anchors, strict=True)),
            sys.stdin.read() if prompt == "-" else prompt,
            rule=rule,
            settings=dict(_setting(text) for text in sets or ()),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            speculative=speculative,
            dtype=dtype,
            trace=alpha_trace,
            on_text=on_text,
        )

    return run_job(job, as_json, lambda _: print())


@doctor_app.command("fusion")
def doctor_fusion(
    strong: Strong,
    expert: Annotated[str, typer.Option("--expert", metavar="MODEL", help="Small expert, or a PEFT adapter.")],
    anchor: Annotated[str, typer.Option("--anchor", metavar="MODEL", help="What the expert was tuned from.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="JSONL", help='One {"prompt": ..., "answer": ...} a line.')
    ] = None,
    memory_only: Annotated[bool, typer.Option("--memory-only", help="Estimate memory and load nothing.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Length of a sequence for the estimate.")] = 1024,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Sequences at a time for the estimate.")] = 16,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> int:
    """Does fusion help on my pair? Scores with intervals from a small labelled file."""
    from weightgen import jobs

    def job(_: object) -> jobs.DoctorResult:
        if data is None and not memory_only:
            raise UsageError("there is no labelled file", "give --data FILE.jsonl, or --memory-only")
        return jobs.doctor_fusion(
            strong,
            expert,
            anchor,
            None if memory_only else data,
            dtype=dtype,
            tokens=tokens,
            rows=rows,
            on_memory=lambda text: print(text, file=sys.stderr),
        )

    return run_job(job, as_json)


def add_decode_commands(app: typer.Typer) -> None:
    """Hang the commands on the command line."""
    app.command("decode")(decode)
    app.add_typer(doctor_app, name="doctor")
