"""How far compositions are from their definition on updates: ours beside those of PEFT, on the same adapters."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightgen.compose import compose
from weightgen.compose.adapters import read_adapter
from zoo.kinds import lora
from zoo.types import Weights

WIDTH, LAYERS, DENSITY, DRAWS = 128, 4, 0.5, 12
WEIGHTS = (0.7, 0.5, -0.3)
CASES: dict[str, list[dict[str, Any]]] = {
    "equal ranks": [{"r": 8, "lora_alpha": 16}] * 3,
    "rank-stabilised": [{"r": 8, "lora_alpha": 16, "use_rslora": True}] * 3,
    "ranks 4, 8, 16": [{"r": r, "lora_alpha": 16} for r in (4, 8, 16)],
    "ranks 4, 8, 16, one rank-stabilised": [
        {"r": 4, "lora_alpha": 16},
        {"r": 8, "lora_alpha": 4, "use_rslora": True},
        {"r": 16, "lora_alpha": 16},
    ],
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "cat": ("linear", {}),
    "svd": ("linear", {}),
    "ties": ("ties", {"density": DENSITY, "trim": "tensor"}),
    "ties_svd": ("ties", {"density": DENSITY, "trim": "tensor"}),
    "dare_linear": ("dare_linear", {"density": DENSITY}),
    "dare_linear_svd": ("dare_linear", {"density": DENSITY}),
    "dare_ties": ("dare_ties", {"density": DENSITY}),
    "dare_ties_svd": ("dare_ties", {"density": DENSITY}),
}


class Base(nn.Module):
    """A stack of square layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))


def parents(settings: Sequence[Mapping[str, Any]]) -> list[Weights]:
    """Adapters with factors as large as trained ones, the same start for all: ``A`` is what they share."""
    result = []
    for seed, setting in enumerate(settings):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for layer in range(LAYERS):
            start = torch.Generator().manual_seed(100 + layer)
            shared = torch.randn(setting["r"], WIDTH, generator=start)
            own = torch.randn(setting["r"], WIDTH, generator=generator)
            name = f"base_model.model.layers.{layer}"
            tensors[f"{name}.lora_A.weight"] = (shared + own) / WIDTH**0.5
            tensors[f"{name}.lora_B.weight"] = 0.1 * torch.randn(WIDTH, setting["r"], generator=generator)
        config = {"peft_type": "LORA", "base_model_name_or_path": "base", **setting}
        targets = [f"layers.{layer}" for layer in range(LAYERS)]
        result.append(lora.from_state_dict(tensors, {**config, "target_modules": targets}))
    return result


def updates(weights: Weights) -> dict[str, Tensor]:
    """What an adapter adds, in full."""
    return {name: delta.values() for name, delta in read_adapter(weights, "adapter").deltas.items()}


def _trim(value: Tensor) -> Tensor:
    kept = value.flatten().abs().topk(int(DENSITY * value.numel())).indices
    return value.flatten() * torch.zeros(value.numel(), dtype=value.dtype).index_fill(0, kept, 1)


def definition(adapters: Sequence[Weights], method: str) -> dict[str, Tensor]:
    """The method written down on full updates in float64; the expectation over draws for those that draw."""
    full = [updates(adapter) for adapter in adapters]
    result = {}
    for name in full[0]:
        values = torch.stack([one[name] for one in full])
        weights = torch.tensor(WEIGHTS, dtype=torch.float64)
        if method == "ties":
            kept = torch.stack([_trim(value).reshape(value.shape) for value in values])
            sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
            agrees = kept.sign() == sign
            result[name] = (kept * agrees * weights[:, None, None]).sum(0) / agrees.sum(0).clamp(min=1)
        elif method == "dare_ties":
            result[name] = _expected_dare_ties(values, weights)
        else:
            result[name] = torch.einsum("s,soi->oi", weights, values)
    return result


def _expected_dare_ties(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over all ways to keep or drop the three values of a place."""
    total = torch.zeros_like(values[0])
    for case in range(2 ** len(values)):
        keep = torch.tensor([case >> i & 1 for i in range(len(values))], dtype=values.dtype)
        chance = float((DENSITY**keep * (1 - DENSITY) ** (1 - keep)).prod())
        kept = values * keep[:, None, None] / DENSITY
        agrees = kept.sign() == torch.where(kept.sum(0) >= 0, 1.0, -1.0)
        total += chance * (kept * agrees * weights[:, None, None]).sum(0) / agrees.sum(0).clamp(min=1)
    return total


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Relative Frobenius distance over all modules."""
    off = sum(float((found[name].double() - value).square().sum()) for name, value in wanted.items())
    return (off / sum(float(value.square().sum()) for value in wanted.values())) ** 0.5


def by_peft(folders: Sequence[Path], kind: str, seed: int) -> dict[str, Tensor]:
    """Updates of ``add_weighted_adapter``; those that take a rank are given the full one."""
    from peft import PeftModel

    torch.manual_seed(seed)
    model: Any = PeftModel.from_pretrained(Base(), str(folders[0]), adapter_name="p0")
    for i, folder in enumerate(folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=f"p{i}")
    options: dict[str, Any] = {"density": DENSITY} if "ties" in kind or "dare" in kind else {}
    options |= {"svd_rank": WIDTH} if "svd" in kind else {}
    names = [f"p{i}" for i in range(len(folders))]
    model.add_weighted_adapter(names, list(WEIGHTS), "mixed", combination_type=kind, **options)
    layers = model.get_base_model().layers
    return {f"layers.{i}.weight": layer.get_delta_weight("mixed").detach() for i, layer in enumerate(layers)}


def by_us(adapters: Sequence[Weights], kind: str, seed: int) -> dict[str, Tensor]:
    """Updates of ours at the rank that loses nothing, read back from the float32 factors."""
    method, settings = KINDS[kind]
    return updates(compose(adapters, method, weights=WEIGHTS, settings=settings, seed=seed).weights)


def measure() -> dict[str, Any]:
    """All kinds in all cases: relative distance to the definition; of draws, that of their mean."""
    rows: list[dict[str, Any]] = []
    for case, settings in CASES.items():
        adapters = parents(settings)
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folders = [Path(scratch) / f"a{i}" for i in range(len(adapters))]
            for folder, adapter in zip(folders, adapters, strict=True):
                folder.mkdir()
                lora.Lora().write(adapter, folder)
            for kind, (method, _) in KINDS.items():
                wanted, draws = definition(adapters, method), DRAWS if "dare" in kind else 1
                row: dict[str, Any] = {"case": case, "kind": kind, "method": method, "draws": draws}
                for who, run, given in (("peft", by_peft, folders), ("ours", by_us, adapters)):
                    started = time.process_time()
                    try:
                        found = [run(given, kind, seed) for seed in range(draws)]  # type: ignore[operator]
                    except (ValueError, RuntimeError) as error:
                        row[who] = None
                        row[f"{who}_refuses"] = str(error).splitlines()[0][:200]
                        continue
                    mean = {name: torch.stack([one[name].double() for one in found]).mean(0) for name in wanted}
                    row[who] = distance(mean, wanted)
                    row[f"{who}_seconds"] = round((time.process_time() - started) / draws, 4)
                rows.append(row)
    return {"width": WIDTH, "layers": LAYERS, "weights": WEIGHTS, "density": DENSITY, "rows": rows}
