"""The job on one large model; ``weightgen.jobs`` hands it on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightgen.progress import Progress

if TYPE_CHECKING:
    from weightgen.large.result import ExploreResult

DEFAULT_CONFIG = "explore-small"


def explore(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    config: Path | str = DEFAULT_CONFIG,
    test_data: Path | str | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> ExploreResult:
    """Sample new values for chosen layers of one model, score them on a task, write the best checkpoint.

    Args:
        model: folder of a transformers checkpoint in safetensors, or a Hub id.
        data: task that decides which candidate is best: lines of JSON for causal models, or a text classification
            task for encoders, ``FILE#train`` for another part than its validation part; see docs/large.md.
        out: folder of the new checkpoint; an earlier exploration there is replaced. ``.<name>.explore`` beside it
            keeps generator and scores, so that a rerun goes on where the last one stopped.
        config: YAML file, or the name of a shipped one.
        test_data: task that takes no part in the choice and has the last word on it.
        overrides: changes of single values of the config, each ``"a.b=c"``.
        progress: told what is done.

    Returns:
        The card: every candidate with its interval, controls, verdict, seconds and memory.

    Raises:
        UsageError: if config, task, layers or ``out`` cannot be used, or ``test_data`` shares items with ``data``.
        BadArtefact: if the checkpoint or a task is damaged, or the written checkpoint differs from what was scored.
        NetworkError: if the model is not on this machine and the Hub cannot be reached.
    """
    from weightgen.large.config import load_explore_config
    from weightgen.large.explore import explore_model

    parsed = load_explore_config(config, overrides)
    held_out = None if test_data is None else str(test_data)
    return explore_model(str(model), parsed, str(data), Path(out), held_out, progress)
