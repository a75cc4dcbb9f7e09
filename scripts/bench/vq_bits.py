"""How many bits a weight does a network need? Error and accuracy of held-out networks after the discrete codec.

    python scripts/bench/vq_bits.py run --images mnist.npz --loras FOLDER   # can be stopped and resumed
    python scripts/bench/vq_bits_render.py        # the section of docs/results.md and the figure, from the saved JSON

Codecs are fitted to training networks and judged on networks that they have not seen: squared error in units of the
variance of each (layer, role), and accuracy on validation images. Nothing here reads a test split.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a script beside this one is named like the package
RESULTS = ROOT / "docs" / "results" / "vq_bits"
if TYPE_CHECKING:
    from torch import Tensor

    from weightgen.codecs.vq import VQ

IMAGES, JUDGED, STEPS = 300, 24, 200
app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Measure the discrete codec."""


CODEBOOKS: dict[str, dict[float, tuple[int, dict[str, Any]]]] = {
    "vq": {b: (g, {"kind": "vq", "size": 256}) for b, g in ((0.5, 16), (1, 8), (2, 4), (4, 2))},
    "vq-1024": {b: (g, {"kind": "vq", "size": 1024}) for b, g in ((1, 10), (2, 5))},
    "vq-4096": {b: (g, {"kind": "vq", "size": 4096}) for b, g in ((3, 4),)},
    "residual": {b: (g, {"kind": "residual", "size": 256, "depth": 2})
                 for b, g in ((0.5, 32), (1, 16), (2, 8), (4, 4))},
    "uneven": {b: (8, {"kind": "residual", "size": 256, "depth": 6}) for b in (1.5, 2, 3, 4)},
    "fsq": {b: (g, {"kind": "fsq", "levels": s}) for b, g, s in (
        (0.5, 8, [2] * 4), (1, 8, [2] * 8), (2, 4, [4] * 4), (4, 2, [16] * 2))},
    "simvq": {b: (g, {"kind": "simvq", "size": 256}) for b, g in ((0.5, 16), (1, 8), (2, 4), (4, 2))},
    "scalar": {b: (1, {"kind": "vq", "size": 2**b}) for b in (1, 2, 4)},
}  # fmt: skip
RECALL = {"group": 205, "quantiser": {"kind": "vq", "size": 2048}, "means": "role"}


@dataclass(frozen=True)
class Case:
    """One codec on one collection."""

    zoo: str
    canonical: bool
    name: str
    autoencoder: str
    bits: float
    means: str = "weight"

    @property
    def key(self) -> str:
        gauge = "canonical" if self.canonical else "raw"
        return f"{self.zoo}-{gauge}-{self.name}-{self.autoencoder}-{self.means}-{self.bits:g}"


def _cases() -> Iterator[tuple[int, Case]]:
    """All cases, those that matter most first, each with the number of seeds it gets."""
    for zoo, canonical in (("cnn", True), ("digits", True), ("lora", True), ("cnn", False), ("lora", False)):
        rates = (0.5, 1, 2, 4) if canonical else (1, 2)
        for name in ("int8", "int4") if canonical else ():
            yield 1, Case(zoo, canonical, name, "none", int(name[3:]), "role")
        for name in ("vq", "residual", "fsq", "simvq") if canonical else ("vq", "residual"):
            for bits in rates:
                yield 3 if zoo == "cnn" and name in ("vq", "residual") else 1, Case(zoo, canonical, name, "none", bits)
        for bits in (1, 2, 4) if canonical else ():
            yield 1, Case(zoo, canonical, "scalar", "none", bits, "role")
        yield 1, Case(zoo, canonical, "vq", "none", 2, "role")
        if zoo == "cnn" and canonical:
            yield 1, Case(zoo, canonical, "recall", "none", 0.05, "role")
    for bits in (2, 1, 0.5):
        for name in ("vq", "residual", "fsq", "simvq") if bits != 0.5 else ("vq",):
            for autoencoder in ("transformer", "mlp"):
                yield 3 if name == "vq" and bits == 2 else 1, Case("cnn", True, name, autoencoder, bits)
    for zoo in ("cnn", "digits", "lora"):
        for bits in (1.5, 2, 3, 4) if zoo != "lora" else (2,):
            yield 3 if zoo == "cnn" else 1, Case(zoo, True, "uneven", "none", bits)
        for bits, name in ((2, "vq-1024"), (3, "vq-4096"), (1, "vq-1024")) if zoo != "lora" else ():
            yield 1, Case(zoo, True, name, "none", bits)


class Collection:
    """Networks of one zoo as tokens, held-out ones apart, with what judges a reconstruction."""

    def __init__(self, zoo: str, canonical: bool, work: Path, seed: int) -> None:
        import torch

        from zoo.types import Weights
        from zoo.zoo import Zoo

        self.name, self.cut = zoo, 0
        order = torch.Generator().manual_seed(seed)
        with Zoo.open(work / zoo) as opened:
            if zoo == "lora":
                tensors, self.layout = self._adapters(opened, canonical, order)
            else:
                tensors, self.layout = self._networks(opened, canonical, order)
        self.tensors = tensors
        self.weights = [Weights(self.layout, {k: v[i] for k, v in tensors.items()}) for i in range(self.cut)]

    def _networks(self, opened: Any, canonical: bool, order: Any) -> tuple[dict[str, Tensor], Any]:
        import torch

        from zoo.datasets import Members, bank_of, load_members, reference_of
        from zoo.tasks import VAL

        members = load_members(opened, "train")
        pick = torch.randperm(len(members), generator=order)[:96]
        records = tuple(members.records[i] for i in pick.tolist())
        members = Members(members.layout, records, {k: v[pick] for k, v in members.tensors.items()})
        self.cut = 72
        if canonical:
            train = Members(members.layout, records[: self.cut], {k: v[: self.cut] for k, v in members.tensors.items()})
            members = members.aligned(reference_of(train))
        tasks = [opened.task(str(record.task)) for record in records]
        unique = list({task.name: task for task in tasks}.values())
        bank = bank_of(opened, unique, VAL)
        self.examples = [bank.all(unique.index(task)) for task in tasks]
        return dict(members.tensors), members.layout

    def _adapters(self, opened: Any, canonical: bool, order: Any) -> tuple[dict[str, Tensor], Any]:
        """Adapters, those of held-out tasks last."""
        import torch

        from zoo.kinds.lora import pairs, regauged

        records = opened.records(kind="lora")
        tasks = sorted({record.task for record in records})
        held_out = {tasks[i] for i in torch.randperm(len(tasks), generator=order)[:15].tolist()}
        records = sorted(records, key=lambda record: (record.task in held_out, record.lineage))
        self.cut = sum(record.task not in held_out for record in records)
        loaded = [opened.weights(record) for record in records]
        self.pairs = pairs(loaded[0].tensors)
        if canonical:
            loaded = [regauged(weights, self.pairs) for weights in loaded]
        stacked = {k: torch.stack([w.tensors[k].float() for w in loaded]) for k in loaded[0].tensors}
        return stacked, loaded[0].layout

    def judge(self, decoded: dict[str, Tensor], which: range) -> dict[str, float]:
        """Accuracy of networks, or relative error of the updates of adapters."""
        import torch

        from zoo.networks import architecture_of, logits_many

        if self.name == "lora":
            wrong = right = 0.0
            for a, b in self.pairs:
                truth = self.tensors[b][which] @ self.tensors[a][which]
                made = decoded[b] @ decoded[a]
                wrong, right = wrong + (made - truth).square().sum((1, 2)), right + truth.square().sum((1, 2))
            return {"update_error": float((torch.as_tensor(wrong) / right).mean())}
        hits = []
        for i, member in enumerate(list(which)[:JUDGED]):
            x, y = self.examples[member]
            x, y = (part[:: max(1, len(y) // IMAGES)] for part in (x, y))  # they are in the order of the classes
            one = {k: v[i : i + 1] for k, v in decoded.items()}
            hits.append((logits_many(architecture_of(self.layout), one, x[None])[0].argmax(-1) == y).float().mean())
        return {"accuracy": float(torch.stack(hits).mean())}


def _codec(case: Case, width: int, positions: Any) -> VQ:
    from weightgen.codecs.vq import VQ, VQConfig
    from zoo.config import parse_config

    if case.name == "recall":
        data = dict(RECALL)
    else:
        group, quantiser = CODEBOOKS[case.name][case.bits]
        data = {"group": group, "quantiser": quantiser, "means": case.means}
        data |= {"mean_codes": float(case.bits)} if case.name == "uneven" else {}
    data |= {"autoencoder": case.autoencoder, "width": 48, "depth": 1, "heads": 4}
    return VQ(parse_config(data, VQConfig, source=case.key), width, positions)


def _train(codec: VQ, values: Tensor, mask: Tensor, position: Tensor, seed: int) -> None:
    import torch

    optimiser = torch.optim.AdamW(codec.train().parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        pick = torch.randint(len(values), (12,), generator=generator)
        loss = codec.loss(values[pick], mask, position, generator).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    codec.eval()


def _round_to_nearest(tensors: dict[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Whole numbers of the given width with one scale a tensor and network."""
    made = {}
    for name, value in tensors.items():
        scale = value.abs().flatten(1).amax(1).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
        scale = scale.view(-1, *[1] * (value.ndim - 1))
        made[name] = (value / scale).round() * scale
    return made


def measure(case: Case, data: Collection, seed: int) -> dict[str, Any]:
    """Fit one codec and judge it on held-out networks and on those it was fitted to."""
    import torch

    from weightgen.codecs.standardise import Standardiser
    from weightgen.codecs.vq import usage
    from zoo.tokens import Tokenizer

    started = time.process_time()
    group = 205 if case.name == "recall" else CODEBOOKS[case.name][case.bits][0] if case.name in CODEBOOKS else 1
    tokenizer = Tokenizer.fit(data.weights, group * max(1, round(64 / group)) if group < 205 else 64)
    values = tokenizer.values(data.tensors, data.layout)
    mask, position = tokenizer.template(data.layout)
    sizes = tuple((position.amax(0) + 1).tolist())
    unit = Standardiser(tokenizer.width, sizes, "role")
    unit.fit([(values[: data.cut], mask, position)])
    mean, deviation = unit(position)
    sides = {"train": range(min(data.cut, JUDGED)), "held_out": range(data.cut, len(values))}
    row: dict[str, Any] = {"seed": seed, "weights": int(mask.sum()), "networks": data.cut}
    torch.manual_seed(seed)
    if case.name.startswith("int"):
        row["bits"] = case.bits + 32 * len(data.layout.tensors) / row["weights"]

        def rebuild(which: range) -> Tensor:
            chosen = {k: v[which] for k, v in data.tensors.items()}
            return tokenizer.values(_round_to_nearest(chosen, int(case.bits)), data.layout)
    elif case.name == "recall":  # whole layers at once: long pieces of the network in one row, standardised before
        flat = ((values - mean) / deviation)[:, mask]
        flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % group)).unflatten(1, (-1, group))
        there = torch.arange(flat.shape[1] * group).view(-1, group) < row["weights"]
        place = torch.tensor([[0, 0, i, 0] for i in range(len(there))])
        codec = _codec(case, group, (1, 1, len(there), 1)).eval()
        codec.fit([(flat[: data.cut], there, place)], torch.Generator().manual_seed(seed))
        row["bits"] = codec.bits_a_weight(there, place)

        def rebuild(which: range) -> Tensor:
            made = torch.zeros_like(values[which])
            made[:, mask] = codec.reconstruct(flat[which], there, place).flatten(1)[:, : row["weights"]]
            return (made * deviation + mean) * mask
    else:
        codec = _codec(case, tokenizer.width, sizes).eval()
        codec.fit([(values[: data.cut], mask, position)], torch.Generator().manual_seed(seed))
        if case.autoencoder != "none":
            _train(codec, values[: data.cut], mask, position, seed)
        row["bits"] = codec.bits_a_weight(mask, position)
        codes = codec.encode(values[sides["held_out"]], mask, position).flatten(0, 1)
        each = len(codec.quantiser.vocabulary)
        used, perplexity = usage(codes.view(-1, each)[codes.view(-1, each)[:, 0] >= 0], codec.quantiser.vocabulary)
        row |= {"use": float(used), "perplexity": float(perplexity), "vocabulary": codec.quantiser.vocabulary}

        def rebuild(which: range) -> Tensor:
            return codec.reconstruct(values[which], mask, position)

    for side, which in sides.items():
        with torch.no_grad():
            made = rebuild(which)
            error = (((made - values[which]) / deviation).square() * mask).sum() / (mask.sum() * len(made))
            row[side] = {"error": float(error), **data.judge(tokenizer.tensors(made, data.layout), which)}
    with torch.no_grad():
        chosen = {k: v[sides["held_out"]] for k, v in data.tensors.items()}
        row["original"] = data.judge(chosen, sides["held_out"])
    return row | {"seconds": round(time.process_time() - started, 2)}


def _zoos(work: Path, images: Path, loras: Path | None) -> list[str]:
    from weightgen import jobs

    settings = ["members_per_task=192", "training.epochs=6", "keep_epochs=[]", "sampled={lr: [0.001, 0.01]}"]
    if not (work / "cnn").exists():
        jobs.build_zoo(ROOT / "configs" / "cnn-images.yaml", work / "cnn", [f"data.sources=[{images}]", *settings])
    if not (work / "digits").exists():
        jobs.build_zoo(ROOT / "configs" / "digits.yaml", work / "digits")
    if loras is not None and not (work / "lora").exists():
        jobs.collect_weights([loras], work / "lora")
    return ["cnn", "digits", *([] if loras is None else ["lora"])]


@app.command()
def run(
    images: Annotated[Path, typer.Option(help="Images for the tiny CNNs, npz.")],
    loras: Annotated[Path | None, typer.Option(help="Folder of LoRA adapters.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for zoos.")] = Path("runs/vq-bits"),
) -> None:
    """Measure every case that has no result yet; one JSON file a collection and seed."""
    import torch
    from loguru import logger

    logger.disable("vector_quantize_pytorch")
    torch.set_num_threads(1)
    zoos = _zoos(work, images, loras)
    todo = [(seed, case) for seed in range(3) for seeds, case in _cases() if seed < seeds and case.zoo in zoos]
    loaded: dict[tuple[Any, ...], Collection] = {}
    RESULTS.mkdir(parents=True, exist_ok=True)
    for done, (seed, case) in enumerate(todo):
        file = RESULTS / f"{case.zoo}-{seed}.json"
        rows = json.loads(file.read_text()) if file.is_file() else {}
        if case.key in rows:
            continue
        key = (case.zoo, case.canonical, seed)
        if key not in loaded:
            loaded = {key: Collection(case.zoo, case.canonical, work, seed)}
        rows[case.key] = measure(case, loaded[key], seed)
        side = file.with_suffix(".partial")
        side.write_text(json.dumps(rows, indent=1) + "\n")
        side.replace(file)
        print(
            f"{done + 1}/{len(todo)}: {case.key}, seed {seed}: {rows[case.key]['held_out']}",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    app()
