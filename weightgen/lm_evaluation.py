"""Causal models on the benchmarks of EleutherAI's lm-evaluation-harness: plain, adapted, or steered while decoding.

from weightgen import WeakToStrong
from weightgen.lm_evaluation import harness_model

model = harness_model(WeakToStrong("strong", experts=[("expert", "anchor")]), tokenizer)
lm_eval.simple_evaluate(model, tasks=["arc_easy"])
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightgen.results import JobResult, plain
from zoo.errors import MissingExtra, UsageError

INSTALL = "pip install 'weightgen[lm-eval]'"


@dataclass(frozen=True)
class LanguageModelResult(JobResult):
    """What a causal model reached on benchmarks.

    Attributes:
        path: the model or adapter.
        results: metrics by benchmark, as lm-eval names them.
        base: the same of the base model, for an adapter.
    """

    path: Path
    results: Mapping[str, Mapping[str, Any]]
    base: Mapping[str, Mapping[str, Any]] | None

    def summary(self) -> str:
        lines = []
        for task, metrics in self.results.items():
            for name, value in metrics.items():
                if isinstance(value, float) and "stderr" not in name:
                    beside = "" if self.base is None else f"   base {self.base[task][name]:.4f}"
                    lines.append(f"{task:24s} {name.removesuffix(',none'):16s} {value:.4f}{beside}")
        return "\n".join(lines)


def _harness() -> Any:
    try:
        return importlib.import_module("lm_eval")
    except ImportError:
        raise MissingExtra("benchmarks of language models need lm-eval", INSTALL) from None


def harness_model(model: Any, tokenizer: Any, batch_size: int = 1) -> Any:
    """A loaded causal model as a model of lm-eval.

    Args:
        model: of transformers, wrapped by PEFT or not, or a ``WeakToStrong``.
        tokenizer: its tokenizer.
        batch_size: texts at once.

    Raises:
        MissingExtra: if lm-eval is not installed.
    """
    _harness()
    return importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model.eval(), backend="causal", tokenizer=tokenizer, batch_size=batch_size
    )


def evaluate_language_model(
    path: Path | str, tasks: Sequence[str], *, base: str | None = None, limit: int | None = None, batch_size: int = 1
) -> LanguageModelResult:
    """Measure a causal model, or an adapter beside its base, on benchmarks.

    Args:
        path: folder or id of a causal model, or of a PEFT adapter for one.
        tasks: names that lm-eval knows, or files of tasks in its YAML format.
        base: base model of an adapter, by default the one it names.
        limit: examples a benchmark at most; for a first look, not for a result.
        batch_size: texts at once.

    Raises:
        MissingExtra: if lm-eval is not installed.
        BadArtefact: if there is no causal model.
        UsageError: if lm-eval does not know a task, or there is no tokenizer.
    """
    _harness()
    from weightgen.decode.loading import load_model, load_tokenizer

    source, adapter = str(path), (Path(path) / "adapter_config.json").is_file()
    if adapter:
        from peft import PeftConfig

        source = base or str(PeftConfig.from_pretrained(source).base_model_name_or_path)
    model = load_model(source, "model")
    tokenizer = load_tokenizer(path) or load_tokenizer(source)
    if tokenizer is None:
        raise UsageError(f"there is no tokenizer in {path} or {source}", "save the tokenizer beside the model")
    found = None if not adapter else _measured(model, tokenizer, tasks, limit, batch_size)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(path))
    return LanguageModelResult(Path(path), _measured(model, tokenizer, tasks, limit, batch_size), found)


def _measured(
    model: Any, tokenizer: Any, tasks: Sequence[str], limit: int | None, batch_size: int
) -> Mapping[str, Mapping[str, Any]]:
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    names = [_name_in(Path(task)) if Path(task) in files else task.strip() for task in tasks]
    known = importlib.import_module("lm_eval.tasks").TaskManager(
        include_path=[str(folder) for folder in sorted({file.parent for file in files})] or None
    )
    if unknown := [name for name in names if name not in known.all_tasks]:
        raise UsageError(f"lm-eval knows no task {unknown[0]!r}", "see: lm-eval ls tasks; or give a YAML file")
    wrapped = harness_model(model, tokenizer, batch_size)
    found = _harness().simple_evaluate(
        wrapped, tasks=names, limit=limit, task_manager=known, log_samples=False, bootstrap_iters=1000
    )
    return plain(found["results"])


def _name_in(file: Path) -> str:
    try:
        found = re.search(r"^task:\s*(\S+)\s*$", file.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({error})", "give a task file of lm-eval") from None
    if found is None:
        raise UsageError(f"{file} names no task", "it needs a line such as 'task: my_task'")
    return found[1]
