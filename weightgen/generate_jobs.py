"""The job ``generate``; see ``weightgen.jobs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weightgen.results import AdapterResult, GenerateResult


def generate(
    generator: Path | str | None = None,
    data: Path | str | None = None,
    out: Path | str = "generated",
    n: int = 1,
    seed: int = 0,
    *,
    description: str | None = None,
    labels: Sequence[str] = (),
    task: Path | str | None = None,
    base: str | None = None,
    use_examples: int = 0,
    use_labels: int = 0,
    finetune: int = 0,
    instruction: str | None = None,
    architecture: str | None = None,
) -> GenerateResult | AdapterResult:
    """Generate weights for a task without training: adapters from words, networks from labelled examples.

    Args:
        generator: folder of a trained generator, or the name of a shipped one; by default the shipped one for adapters
            of all-MiniLM-L6-v2.
        data: for networks, an ``.npz`` file with ``x`` [examples, ...] and ``y`` [examples], labels
            ``0 .. classes - 1``; bytes are scaled by 1 / 255, other numbers are taken as they are. For adapters, a file
            with one unlabelled text a line.
        out: folder of the result; an earlier generation there is replaced, anything else is not touched. A single
            adapter is the folder itself, several are folders in it.
        n: how many.
        seed: the same seed gives the same weights.
        description: of a text task, in a sentence.
        labels: of a text task, each in words.
        task: file of a text task (see docs/data.md): its description and label texts are used, nothing else unless the
            next but one arguments say so.
        base: id or folder of the base model of an adapter; by default the one that the generator was made for.
        use_examples: texts of the task file to use without their labels.
        use_labels: examples of each label of the task file to use with their labels, to measure and to fine-tune on.
        finetune: steps of training on the labelled examples afterwards; the curve is kept.
        instruction: which network is wanted, in words; the layout follows from it unless ``architecture`` is given.
        architecture: JSON object that says which network is wanted, or a file that holds one.

    Returns:
        The files, and how well each result fits the labelled examples.

    Raises:
        UsageError: if what is known does not fit the generator or the base, or ``out`` is in use.
        BadArtefact: if the generator is missing or damaged, or a file cannot be used.
        NetworkError: if the base model is not on this machine and cannot be fetched.
    """
    from weightgen.checkpoint import read_config
    from weightgen.kit import generator_folder
    from zoo.errors import UsageError

    folder = generator_folder(generator)
    text_encoder = read_config(folder)["config"].get("text_encoder")
    words = bool(description or labels or task)
    if text_encoder is None or (data is not None and Path(data).suffix == ".npz"):
        from weightgen.generate.networks import Wish, generate_networks

        if words or data is None:
            raise UsageError(f"the generator {folder} writes networks from labelled examples", "give them with --data")
        return generate_networks(folder, Path(data), Path(out), n, seed, finetune, Wish(instruction, architecture))
    if instruction is not None or architecture is not None:
        raise UsageError(
            f"{folder} writes adapters here, their layout is fixed",
            "leave --instruction and --architecture out, or give labelled examples in an .npz file",
        )
    from weightgen.generate.adapters import generate_adapters
    from weightgen.generate.task import given_task

    given = given_task(
        description,
        tuple(labels),
        None if task is None else Path(task),
        None if data is None else Path(data),
        use_examples,
        use_labels,
        seed,
    )
    return generate_adapters(folder, given, Path(out), base, n, seed, finetune)
