"""The commands on zoos: a thin typer shell over ``weightgen.jobs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.console import print_table, run_job
from weightgen.options import Json, Sets, ZooDir

if TYPE_CHECKING:
    from weightgen.zoo_results import CollectResult, ListResult, ShowResult

zoo_app = typer.Typer(help="Build, fill, search and check zoos of trained weights.", no_args_is_help=True)

RecordId = Annotated[str, typer.Argument(metavar="ID", help="Identifier as shown by 'zoo ls', or its beginning.")]
Kind = Annotated[str | None, typer.Option(help="Kind of weights.")]
Base = Annotated[str | None, typer.Option(help="Base model of adapters.")]
Task = Annotated[str | None, typer.Option(help="Name of the task.")]
Split = Annotated[str | None, typer.Option(help="train, val or test.")]
License = Annotated[str | None, typer.Option(help="Licence as stated by the source.")]
Dataset = Annotated[str | None, typer.Option(help="Data the weights were trained on.")]
Metric = Annotated[
    list[str] | None, typer.Option(metavar="CONDITION", help='For example "val_accuracy>=0.9"; repeatable.')
]


@zoo_app.command("build")
def zoo_build(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML recipe, or the name of a shipped one: digits.")
    ],
    zoo: ZooDir,
    sets: Sets = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="inline (this process), local (several processes) or ray (a cluster)."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; by default one a core. Alone it means local.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Train the networks of a recipe; a rerun goes on where the last one stopped."""
    from weightgen import jobs

    where = engine or ("local" if workers else "inline")
    return run_job(lambda progress: jobs.build_zoo(recipe, zoo, sets or (), progress, where, workers), as_json)


@zoo_app.command("collect")
def zoo_collect(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="File, adapter, archive, folder, or Hub id.")],
    zoo: ZooDir,
    metadata: Annotated[
        Path | None, typer.Option("--metadata", metavar="CSV", help="Table with a column path or name, and task, ...")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing, list sizes.")] = False,
    as_json: Json = False,
) -> int:
    """Read, check and store weights that exist; exit code 3 if any source is refused, 5 if only the network was."""
    from weightgen import jobs

    return run_job(
        lambda progress: jobs.collect_weights(sources, zoo, dry_run, progress, metadata), as_json, _show_collected
    )


def _with_filters(command: Callable[[Path, dict[str, Any], bool], int]) -> Callable[..., int]:
    """A command over the records that pass filters: adds their options to it."""

    def run(
        zoo: ZooDir,
        kind: Kind = None,
        base: Base = None,
        task: Task = None,
        split: Split = None,
        license: License = None,
        dataset: Dataset = None,
        metric: Metric = None,
        as_json: Json = False,
    ) -> int:
        about = {"kind": kind, "base_model": base, "task": task, "split": split, "license": license, "dataset": dataset}
        return command(zoo, {**about, "metrics": metric or ()}, as_json)

    run.__doc__ = command.__doc__
    return run


@zoo_app.command("ls")
@_with_filters
def zoo_ls(zoo: Path, filters: dict[str, Any], as_json: bool) -> int:
    """List the records of a zoo."""
    from weightgen import jobs

    return run_job(lambda _: jobs.list_records(zoo, **filters), as_json, _show_records)


@zoo_app.command("stats")
@_with_filters
def zoo_stats(zoo: Path, filters: dict[str, Any], as_json: bool) -> int:
    """Count records, weights and bytes, by kind, base model, task, split and licence."""
    from weightgen import jobs

    return run_job(lambda _: jobs.zoo_stats(zoo, **filters), as_json)


@zoo_app.command("show")
def zoo_show(id: RecordId, zoo: ZooDir, as_json: Json = False) -> int:
    """Show one record with its tensors."""
    from weightgen import jobs

    return run_job(lambda _: jobs.show_record(zoo, id), as_json, _show_record)


@zoo_app.command("verify")
def zoo_verify(
    zoo: ZooDir,
    score: Annotated[
        Path | None,
        typer.Option("--score", metavar="GENERATOR", help="Also list networks that this generator finds unlikely."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Compare everything in a zoo with its checksums; exit code 3 if anything is damaged."""
    from weightgen import jobs

    return run_job(lambda progress: jobs.verify_zoo(zoo, score, progress), as_json)


@zoo_app.command("export")
def zoo_export(
    id: RecordId,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or a .safetensors file.")],
    zoo: ZooDir,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> int:
    """Write a record back as the files it came from, bit for bit."""
    from weightgen import jobs

    return run_job(lambda _: jobs.export_record(zoo, id, out, force), as_json)


@zoo_app.command("rm")
def zoo_rm(id: RecordId, zoo: ZooDir, as_json: Json = False) -> int:
    """Remove one record, and its files unless another record needs them."""
    from weightgen import jobs

    return run_job(lambda _: jobs.remove_record(zoo, id), as_json)


@zoo_app.command("dedupe")
def zoo_dedupe(
    zoo: ZooDir,
    apply: Annotated[bool, typer.Option("--apply", help="Remove twins, keep the first of each.")] = False,
    as_json: Json = False,
) -> int:
    """Find records with the weights of an earlier one: the same tensors, or the same up to symmetry."""
    from weightgen import jobs

    return run_job(lambda _: jobs.dedupe_zoo(zoo, apply), as_json)


def _show_collected(result: CollectResult) -> None:
    columns, rows = ["status", "id", "kind", "path", "reason"], []
    for s in result.sources:
        rows.append([s.status, s.id, s.kind, s.path, s.reason])
        if result.dry_run:
            rows[-1] += [", ".join(s.files), f"{s.bytes:,}", f"{s.parameters:,}"]
    print_table([*columns, "files", "bytes", "weights"] if result.dry_run else columns, rows)
    print(result.summary())


def _show_records(result: ListResult) -> None:
    rows = [
        (r.id, r.layout.kind, r.layout.base_model, f"{r.layout.numel:,}", r.task, r.split, r.license)
        for r in result.records
    ]
    print_table(["id", "kind", "base", "weights", "task", "split", "license"], rows)
    print(result.summary())


def _show_record(result: ShowResult) -> None:
    data = result.to_json()
    tensors = data.pop("tensors")
    print_table(["field", "value"], [(key, value) for key, value in data.items() if value not in (None, {})])
    print_table(["tensor", "shape", "dtype", "role"], [(t["name"], t["shape"], t["dtype"], t["role"]) for t in tensors])
