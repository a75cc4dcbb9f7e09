"""The jobs on weak-to-strong decoding; ``weightgen.jobs`` has them too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.decode_results import DecodeResult, DoctorResult, gigabytes
from zoo.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")


def _dtype(name: str) -> dict[str, Any]:
    import torch

    if name not in DTYPES:
        raise UsageError(f"there is no dtype {name!r}", f"choose one of: {', '.join(DTYPES)}")
    return {} if name == "auto" else {"dtype": getattr(torch, name)}


def _tokenizer(strong: Path | str) -> PreTrainedTokenizerBase:
    from weightgen.decode.loading import load_tokenizer

    tokenizer = load_tokenizer(strong)
    if tokenizer is None:
        raise UsageError(f"{strong} has no tokenizer", "save the tokenizer beside the model")
    return tokenizer


def decode(
    strong: Path | str,
    experts: Sequence[tuple[Path | str, Path | str]],
    prompt: str,
    *,
    rule: str = "dynamic",
    settings: Mapping[str, Any] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    speculative: bool = False,
    dtype: str = "auto",
    trace: Path | str | None = None,
    on_text: Callable[[str], None] | None = None,
) -> DecodeResult:
    """Answer a prompt with a strong model that small experts steer.

    Args:
        strong: folder or Hub id of the strong model.
        experts: pairs of an expert (model or PEFT adapter) and the small model it was tuned from.
        prompt: what to go on from.
        rule: fusion rule: static, dynamic, pooled, joint, contrastive, average or dexperts.
        settings: settings of the rule.
        max_new_tokens: longest answer.
        temperature: 0 takes the most probable token, others sample.
        seed: the same seed samples the same answer.
        speculative: let the first expert draft and the others verify; the distribution stays the same.
        dtype: type to load the models in: auto, float32, bfloat16 or float16.
        trace: PNG file for the weights over the tokens.
        on_text: called with each piece of the answer as soon as it is known.

    Returns:
        The answer and the weight of each expert at each token.

    Raises:
        UsageError: if models do not fit each other, or a setting cannot be used.
        BadArtefact: if a folder holds no model.
        WeightgenError: if memory runs out, or a model returns no numbers.
    """
    import torch

    from weightgen.decode.memory import check_memory, estimate
    from weightgen.decode.model import WeakToStrong
    from weightgen.decode.speculative import speculate
    from weightgen.decode.streaming import TextPieces
    from weightgen.decode.trace import plot_alphas
    from weightgen.fusion import find_rule

    kind = _dtype(dtype)
    find_rule(rule, settings)  # what can be wrong is found before minutes of loading
    memory = estimate(strong, experts, max_new_tokens, dtype=kind.get("dtype"))
    tokenizer = _tokenizer(strong)
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    if not inputs["input_ids"].shape[1]:
        raise UsageError("the prompt is empty", "write at least one word")
    check_memory(memory)
    model = WeakToStrong(strong, experts, rule=rule, settings=settings, **kind)
    inputs = inputs.to(model.device)
    options: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens, "max_length": None}
    if temperature > 0:
        options |= {"temperature": temperature, "top_k": 0}
    if speculative:
        options["custom_generate"] = speculate
    if on_text is not None:
        options["streamer"] = TextPieces(tokenizer, on_text)
    started = time.perf_counter()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out: Any = model.generate(  # type: ignore[attr-defined]
            **inputs, **options, return_dict_in_generate=True
        )
    seconds = time.perf_counter() - started
    tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
    pieces = tuple(str(tokenizer.decode(token)) for token in tokens)
    cache = out.past_key_values
    alphas = [] if cache.alphas is None else cache.alphas[0].tolist()
    alphas = tuple(tuple(row) for row in alphas[: len(pieces)])
    path = None if trace is None else Path(trace)
    if path is not None:
        names = [Path(str(expert)).name for expert, _ in experts]
        plot_alphas(path, pieces[: len(alphas)], alphas, names, f"rule {rule}: {prompt[:60]!r}")
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    return DecodeResult(prompt, text, pieces, alphas, rule, seconds, path)


def doctor_fusion(
    strong: Path | str,
    expert: Path | str,
    anchor: Path | str,
    data: Path | str | None,
    *,
    dtype: str = "auto",
    tokens: int = 1024,
    rows: int = 16,
    on_memory: Callable[[str], None] | None = None,
) -> DoctorResult:
    """Find out whether fusion helps on a pair of models.

    Args:
        strong: folder or Hub id of the strong model.
        expert: folder or Hub id of the small expert, or of a PEFT adapter.
        anchor: the small model that the expert was tuned from.
        data: JSONL file, one ``{"prompt": ..., "answer": ...}`` a line; without one, memory is estimated and nothing
            is loaded.
        dtype: type to load the models in.
        tokens: length of a sequence that the estimate of memory is for.
        rows: sequences at a time that it is for.
        on_memory: called with the estimate before anything is loaded.

    Returns:
        Scores of strong model, anchor, expert, static, dynamic and pooled fusion with intervals, memory, and a verdict.

    Raises:
        UsageError: if the models do not fit each other, or there are too few items.
        BadArtefact: if a model or the file cannot be read.
        WeightgenError: if the models cannot fit in memory.
    """
    from weightgen.decode.doctor import encode_items, examine, read_items
    from weightgen.decode.memory import available, check_memory, estimate
    from weightgen.decode.model import WeakToStrong

    options = _dtype(dtype)
    items = None if data is None else read_items(Path(data))
    memory = estimate(strong, [(expert, anchor)], tokens, rows, options.get("dtype"))
    if on_memory is not None and items is not None:
        on_memory(f"memory: {gigabytes(memory['total'])} GB needed, {gigabytes(available())} GB free")
    if items is None:
        free = available()
        fits = "fits" if memory["total"] <= free else "does not fit"
        verdict = f"{gigabytes(memory['total'])} GB in all {fits} into the {gigabytes(free)} GB that are free"
        return DoctorResult(0, {}, memory, verdict)
    check_memory(memory)
    encoded = encode_items(_tokenizer(strong), items)
    result, verdict = examine(WeakToStrong(strong, [(expert, anchor)], **options), encoded)
    return DoctorResult(len(items), result, memory, verdict)
