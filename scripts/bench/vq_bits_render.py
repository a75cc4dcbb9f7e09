"""Writes what ``vq_bits.py`` measured: its section of docs/results.md and its figure, from the saved JSON only.

python scripts/bench/vq_bits_render.py
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "vq_bits"
sys.path[0] = str(ROOT)  # a script beside this one is named like the package

from scripts.bench._page import put  # noqa: E402

SECTION = """## Bits a weight of the discrete codec

Made by `python scripts/bench/vq_bits_render.py` from `docs/results/vq_bits`. Error is the squared error in units of the
variance of each layer and role (1 is what the mean gives), accuracy that of 24 networks on about 300
validation images; `held out` are networks that nothing was fitted to, `fitted to` shows recall of training networks.
± is the largest deviation between seeds (split, start of the codebooks, order). Bits are those of all codes at full
vocabulary, padding of short rows included, divided by the number of weights. Codecs subtract the mean of every single
weight over the training networks unless the row says `mean of the role` (so do `scalar`, Lloyd's scalar quantiser, and
`recall`; `int8` and `int4` round to nearest with one scale a tensor). An autoencoder (`mlp` or `transformer`) has
200 training steps on top of the fitted codebook. `vq`, `residual` and `simvq` have codebooks of 256, `uneven` is
`residual` with more codes for small layers.

![Error and accuracy against bits](results/vq_bits/vq_bits.png)

### Tiny CNNs on MNIST, independent starts, hidden units aligned

72 networks to fit to, 24 held out. `recall` is the rate at which published work reports near perfect reconstructions:
it returns the networks it was fitted to and nothing else.

{cnn_canonical}

The same networks without alignment:

{cnn_raw}

### MLPs on subsets of digits, aligned

{digits_canonical}

### LoRA adapters of a text encoder, 15 of 61 tasks held out

Canonical gauge, rows along the rank; error of the update is that of `B @ A`, relative to its squared norm.

{lora_canonical}

As they were trained, without the canonical gauge:

{lora_raw}

"""


@dataclass(frozen=True)
class Case:
    """What a row of the JSON is about."""

    zoo: str
    gauge: str
    name: str
    autoencoder: str
    means: str
    bits: float

    @classmethod
    def of(cls, key: str) -> Self:
        """Read the key of a row; a name may hold hyphens."""
        zoo, gauge, *name, autoencoder, means, bits = key.split("-")
        return cls(zoo, gauge, "-".join(name), autoencoder, means, float(bits))


def _found() -> dict[Case, list[dict[str, Any]]]:
    """Results by case, one a seed."""
    files = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*-[0-9].json"))}
    if not files:
        raise SystemExit("error: there are no results; remedy: python scripts/bench/vq_bits.py run --help")
    found: dict[Case, list[dict[str, Any]]] = {}
    for rows in files.values():
        for key, row in rows.items():
            found.setdefault(Case.of(key), []).append(row)
    return found


def _mean(rows: list[dict[str, Any]], *keys: str) -> float | None:
    values = [row[keys[0]] if len(keys) == 1 else row[keys[0]].get(keys[1]) for row in rows]
    return None if None in values else sum(values) / len(values)


def _spread(rows: list[dict[str, Any]], *keys: str, scale: float = 1.0) -> str:
    middle = _mean(rows, *keys)
    if middle is None:
        return ""
    digits = 1 if scale > 1 else 3
    far = max(abs(row[keys[0]][keys[1]] - middle) for row in rows)
    return f"{scale * middle:.{digits}f}" + (f" ± {scale * far:.{digits}f}" if len(rows) > 1 else "")


def _table(found: dict[Case, list[dict[str, Any]]], zoo: str, gauge: str) -> str:
    judged = "update_error" if zoo == "lora" else "accuracy"
    scale, unit = (1.0, "error of the update") if zoo == "lora" else (100.0, "accuracy, %")
    lines = [
        f"| codec | bits a weight | error, held out | error, fitted to | {unit}, held out | {unit}, fitted to "
        "| perplexity | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    chosen = [(c, rows) for c, rows in found.items() if (c.zoo, c.gauge) == (zoo, gauge)]
    for case, rows in sorted(chosen, key=lambda pair: (pair[0].bits, str(_mean(pair[1], "held_out", "error")))):
        name = {"none": case.name}.get(case.autoencoder, f"{case.name}, {case.autoencoder}")
        name += ", mean of the role" if case.means == "role" and case.name == "vq" else ""
        perplexity = _mean(rows, "perplexity") if "perplexity" in rows[0] else None
        lines.append(
            f"| {name} | {_mean(rows, 'bits'):.2f} | {_spread(rows, 'held_out', 'error')} "
            f"| {_spread(rows, 'train', 'error')} | {_spread(rows, 'held_out', judged, scale=scale)} "
            f"| {_spread(rows, 'train', judged, scale=scale)} | {'' if perplexity is None else f'{perplexity:.0f}'} "
            f"| {len(rows)} |"
        )
    original = _mean([rows[0] for _, rows in chosen], "original", judged)
    if original and zoo != "lora":
        lines.append(f"| the networks themselves | 32 | 0 | 0 | {scale * original:.1f} | | | |")
    return "\n".join(lines)


def _figure(found: dict[Case, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained", sharex="col")
    colours = {"vq": "#2563a8", "residual": "#d97706", "fsq": "#2f855a", "simvq": "#b83280", "scalar": "#7b8794",
               "uneven": "#111827", "vq-1024": "#0e7490"}  # fmt: skip
    for column, zoo in enumerate(("cnn", "digits", "lora")):
        chosen = {c: rows for c, rows in found.items() if c.zoo == zoo and c.gauge == "canonical"}
        judged = ("update_error", 1) if zoo == "lora" else ("accuracy", 100)
        for name, autoencoder in [(n, a) for n in colours for a in ("none", "mlp", "transformer")]:
            means = "role" if name == "scalar" else "weight"
            mine = [r for c, r in chosen.items() if (c.name, c.autoencoder, c.means) == (name, autoencoder, means)]
            line = [(_mean(r, "bits"), _mean(r, "held_out", "error"), _mean(r, "held_out", judged[0])) for r in mine]
            style = {"none": "o-", "mlp": "v:", "transformer": "s--"}[autoencoder]
            label = name if autoencoder == "none" else f"{name}, {autoencoder}"
            if line:
                x, error, other = zip(*sorted(line), strict=True)
                look = {"color": colours[name], "lw": 1.4, "ms": 4.5, "label": label}
                axes[0, column].plot(x, error, style, **look)
                axes[1, column].plot(x, [judged[1] * value for value in other], style, **look)
        for case, rows in chosen.items():
            if case.name in ("int4", "recall"):
                x = _mean(rows, "bits")
                for axis, key, scale in ((axes[0, column], "error", 1), (axes[1, column], *judged)):
                    y = scale * (_mean(rows, "held_out", key) or 0)
                    axis.plot(x, y, "x", color="black", ms=6)
                    axis.annotate(case.name, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        if zoo != "lora":
            best = 100 * (_mean([rows[0] for rows in chosen.values()], "original", "accuracy") or 0)
            axes[1, column].axhline(best, color="#7b8794", lw=1, ls="-.", zorder=0)
        else:
            axes[1, column].set_yscale("log")
        axes[0, column].set_yscale("log")
        axes[0, column].set_title({"cnn": "tiny CNNs, 2,464 weights", "digits": "digit MLPs", "lora": "LoRA"}[zoo])
        axes[1, column].set_ylabel("relative error of the update" if zoo == "lora" else "accuracy, %")
        axes[1, column].set_xlabel("bits a weight")
        for axis in axes[:, column]:
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("squared error of held-out networks\n(1: the mean of each layer and role)")
    axes[0, 0].legend(fontsize=7, frameon=False, loc="lower left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def render() -> None:
    """Write the section of docs/results.md and its figure from the saved JSON."""
    found = _found()
    _figure(found, RESULTS / "vq_bits.png")
    kinds = {(case.zoo, case.gauge) for case in found}
    section = SECTION.format(**{f"{zoo}_{gauge}": _table(found, zoo, gauge) for zoo, gauge in kinds})
    put("vq_bits", section)


if __name__ == "__main__":
    render()
