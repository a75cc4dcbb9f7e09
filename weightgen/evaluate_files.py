"""The job ``evaluate_weights``: one adapter or network on labelled examples, beside base and commonest label."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.results import JobResult

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.types import Weights

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class EvaluateWeightsResult(JobResult):
    """How good weights are on labelled examples.

    Attributes:
        path: the weights.
        data: file of the examples.
        part: which of them: train, validation, test or all.
        rows: scores of ``weights``, ``base`` (if there is one) and ``majority``: accuracy, macro-F1 (each with its 95 %
            interval over examples), calibration error, number of examples.
        gain: macro-F1 above the base, with its paired 95 % interval; without a base above the commonest label.
    """

    path: Path
    data: Path
    part: str
    rows: Mapping[str, Mapping[str, Any]]
    gain: Mapping[str, Any]

    def summary(self) -> str:
        lines = [f"{self.path} on {self.rows['weights']['examples']} examples ({self.part}) of {self.data}"]
        lines += [f"{'':10s} {'macro-F1, %':>22s} {'accuracy, %':>22s} {'calibration error, %':>22s}"]
        for name, row in self.rows.items():
            cells = [_interval(row, "macro_f1"), _interval(row, "accuracy"), _percent(row["calibration_error"])]
            lines.append(f"{name:10s} " + " ".join(f"{cell:>22s}" for cell in cells))
        low, high = self.gain["interval"]
        advice = "better" if low > 0 else "worse: use that instead" if high < 0 else "no different within the noise"
        gain = f"{100 * self.gain['macro_f1']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points of macro-F1"
        return "\n".join([*lines, f"{gain} against the {self.gain['against']}: {advice}"])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{100 * row[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def evaluate_weights(
    path: Path | str, data: Path | str, *, base: str | None = None, part: str | None = None, seed: int = 0
) -> EvaluateWeightsResult:
    """Score an adapter of a text encoder on a text task, or a network on an ``.npz`` file of examples.

    Args:
        path: adapter folder of PEFT, or file of a network with its ``weightgen.json`` beside it.
        data: text task (csv, json, folder of ``datasets``), or ``.npz`` with ``x`` and ``y``.
        base: id or folder of the adapter's base model, by default the one it names; file of another network to compare
            with.
        part: ``train``, ``validation``, ``test`` or ``all`` examples of a text task; by default the test part if there
            is one, else all.
        seed: decides the resamples of the intervals.

    Raises:
        UsageError: if weights and data do not fit together.
        BadArtefact: if a file is missing or damaged.
        NetworkError: if the base model is not on this machine and cannot be fetched.
    """
    import torch

    from weightgen.compose import load
    from weightgen.evaluation.classification import interval, macro_f1_weighted, majority, resamples, scores

    path, data = Path(path), Path(data)
    weights = load(path)
    if weights.layout.kind == "dense" or data.suffix == ".npz":
        found, y = _network(weights, path, data, None if base is None else Path(base))
        part = "all"
    else:
        found, y, part = _adapter(weights, path, data, base, part)
    rows: dict[str, Mapping[str, Any]] = {name: scores(logits, y, seed) for name, logits in found.items()}
    commonest = torch.nn.functional.one_hot(majority(y), int(y.max()) + 1).float()
    rows["majority"] = {**scores(commonest, y, seed), "calibration_error": None}
    answers = {name: logits.argmax(-1) for name, logits in found.items()} | {"majority": majority(y)}
    against = "base" if "base" in found else "majority"
    drawn = resamples(y, seed)
    difference = macro_f1_weighted(answers["weights"], y, drawn) - macro_f1_weighted(answers[against], y, drawn)
    gain = round(rows["weights"]["macro_f1"] - rows[against]["macro_f1"], 4)
    ends = [round(end, 4) for end in interval(difference)]
    return EvaluateWeightsResult(path, data, part, rows, {"against": against, "macro_f1": gain, "interval": ends})


def _network(weights: Weights, path: Path, data: Path, base: Path | None) -> tuple[dict[str, Tensor], Tensor]:
    """Logits of a network, and of another one."""
    from weightgen.compose import load
    from weightgen.generate.examples import read_examples
    from zoo.errors import UsageError
    from zoo.networks import architecture_of, logits, takes

    if weights.layout.kind != "dense":
        raise UsageError(f"{path} is an adapter, {data} holds examples of networks", "give a text task")
    if data.suffix != ".npz":
        raise UsageError(f"{path} is a network, {data} is no .npz file", "give an .npz file with x and y")
    x, y = read_examples(data)
    found = {}
    for name, one, where in (("weights", weights, path), ("base", None if base is None else load(base), base)):
        if one is None:
            continue
        architecture = architecture_of(one.layout)
        if not takes(architecture, x.shape[1:]):
            raise UsageError(f"{where} cannot read examples of the shape {tuple(x.shape[1:])}", "give other examples")
        found[name] = logits(architecture, one.tensors, x).detach()
        if (outputs := found[name].shape[1]) <= int(y.max()):
            raise UsageError(f"{where} knows {outputs} classes, the data have the label {int(y.max())}", "check both")
    return found, y


def _adapter(
    weights: Weights, path: Path, data: Path, base: str | None, part: str | None
) -> tuple[dict[str, Tensor], Tensor, str]:
    """Logits of a text encoder with the adapter and without it."""
    from peft import PeftModel

    from zoo.build.encoder import EncoderConfig, TextEncoder
    from zoo.build.text_tasks import load_text_task
    from zoo.errors import UsageError

    task = load_text_task(data, 0.0, 0)
    texts, y, part = _part(task.texts, task.y, task.part, part, data)
    name = base or weights.layout.base_model
    if name is None:
        raise UsageError(f"{path} names no base model", "give it with --base ID")
    if weights.layout.config.get("peft", {}).get("task_type") == "CAUSAL_LM":
        raise UsageError(f"{path} is an adapter of a language model", "evaluate it with --lm-eval TASKS")
    encoder = TextEncoder(EncoderConfig(name=name))

    def logits() -> Tensor:
        vectors = encoder.encode([*texts, *task.label_texts])
        return encoder.config.scale * vectors[: len(texts)] @ vectors[len(texts) :].T

    plain = logits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what the libraries plan among themselves
        try:
            encoder.model = PeftModel.from_pretrained(encoder.model, str(path)).eval()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{path} does not fit the base {name} ({reason})", "give its own base") from None
    return {"weights": logits(), "base": plain}, y, part


def _part(
    texts: tuple[str, ...], y: Tensor, parts: Tensor, wanted: str | None, data: Path
) -> tuple[list[str], Tensor, str]:
    """The examples of one part; without a wish those for testing, or all if there are none."""
    from zoo.errors import UsageError

    if wanted is None:
        wanted = "test" if bool((parts == PARTS.index("test")).any()) else "all"
    if wanted not in (*PARTS, "all"):
        raise UsageError(f"there is no part {wanted!r}", f"choose one of: {', '.join(PARTS)}, all")
    keep = (parts >= 0 if wanted == "all" else parts == PARTS.index(wanted)).nonzero()[:, 0]
    if not len(keep):
        raise UsageError(f"{data} has no {wanted} examples", "choose another --part, or all")
    return [texts[i] for i in keep.tolist()], y[keep], wanted
