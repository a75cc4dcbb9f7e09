"""Which job has which route. A new job needs one line here; all else follows from its signature and docstring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

TEXTS, LABELLED, ARRAYS = "texts", "labelled", "arrays"


def _configs() -> list[str]:
    from zoo.config import shipped_configs

    return list(shipped_configs())


def _generators() -> list[str]:
    from weightgen.kit import shipped

    return shipped()


@dataclass(frozen=True, eq=False)
class Endpoint:
    """How one job is offered. Arguments with paths that are in none of the sets name files that have to exist.

    Attributes:
        job: name of the function in ``weightgen.jobs``.
        route: path below ``/v1``; it is the command of the command line with slashes.
        out: argument that says where the result goes; if a request leaves it out, it goes beside the job.
        outputs: further arguments that name what is written.
        hub: arguments that may be an id on the Hub instead of a path.
        records: arguments that may be the id of a record in a zoo instead of a path.
        shipped: arguments that may be the name of something in the package instead of a path.
        config: argument that is a YAML file, whose own paths are confined as well.
        inline: what may be sent in the request instead of in a file named by ``data``.
        quick: answered at once, in the process of the server: it reads or changes the catalogue and loads no weights.
        alone: starts processes or changes libraries as a whole, so that its process is not kept for another job.
    """

    job: str
    route: str
    out: str | None = None
    outputs: frozenset[str] = frozenset()
    hub: frozenset[str] = frozenset()
    records: frozenset[str] = frozenset()
    shipped: Mapping[str, Callable[[], list[str]]] = field(default_factory=dict)
    config: str | None = None
    inline: tuple[str, ...] = ()
    quick: bool = False
    alone: bool = False

    @property
    def tag(self) -> str:
        """Group in the documentation."""
        return "zoo" if self.route.startswith("/zoo") else "jobs"


def _names(*names: str) -> frozenset[str]:
    return frozenset(names)


ENDPOINTS = (
    Endpoint(
        "generate",
        "/generate",
        out="out",
        hub=_names("base"),
        shipped={"generator": _generators},
        inline=(TEXTS, ARRAYS),
    ),
    Endpoint(
        "solve",
        "/solve",
        out="out",
        hub=_names("base", "encoder"),
        shipped={"generators": _generators},
        inline=(TEXTS, LABELLED),
    ),
    Endpoint(
        "retrieve",
        "/retrieve",
        outputs=_names("index"),
        hub=_names("encoder"),
        records=_names("weights"),
        inline=(TEXTS, ARRAYS),
    ),
    Endpoint(
        "compose",
        "/compose",
        out="out",
        hub=_names("base"),
        records=_names("parents", "base"),
        inline=(LABELLED, ARRAYS),
    ),
    Endpoint("evaluate_weights", "/evaluate", hub=_names("base"), inline=(LABELLED, ARRAYS)),
    Endpoint("evaluate", "/evaluate/generator", out="out", alone=True),
    Endpoint("evaluate_language_model", "/evaluate/language-model", hub=_names("path", "base"), alone=True),
    Endpoint("train", "/train", out="out", config="config", shipped={"config": _configs}, alone=True),
    Endpoint(
        "explore", "/explore", out="out", hub=_names("model"), config="config", shipped={"config": _configs}, alone=True
    ),
    Endpoint("decode", "/decode", outputs=_names("trace"), hub=_names("strong", "experts")),
    Endpoint("doctor_fusion", "/doctor/fusion", hub=_names("strong", "expert", "anchor")),
    Endpoint("leaderboard", "/leaderboard", out="out"),
    Endpoint("kit", "/kit", out="out"),
    Endpoint("build_zoo", "/zoo/build", out="zoo", config="recipe", shipped={"recipe": _configs}, alone=True),
    Endpoint("collect_weights", "/zoo/collect", out="zoo", hub=_names("sources")),
    Endpoint("list_records", "/zoo/ls", quick=True),
    Endpoint("zoo_stats", "/zoo/stats", quick=True),
    Endpoint("show_record", "/zoo/show", quick=True),
    Endpoint("verify_zoo", "/zoo/verify"),
    Endpoint("export_record", "/zoo/export", out="out"),
    Endpoint("remove_record", "/zoo/rm", quick=True),
    Endpoint("dedupe_zoo", "/zoo/dedupe"),
)
BY_JOB = {endpoint.job: endpoint for endpoint in ENDPOINTS}

# Smallest values, as on the command line; the jobs themselves say what else they cannot use.
LEAST = {
    **dict.fromkeys(("n", "k", "rank", "examples", "batch", "candidates", "max_new_tokens", "tokens", "rows"), 1),
    **dict.fromkeys(("limit", "batch_size", "devices", "workers"), 1),
    **dict.fromkeys(("seed", "use_examples", "use_labels", "finetune", "calibrate", "temperature"), 0),
}
PARTS = frozenset({"data", "test_data"})
"""Arguments of ``explore`` that may end in ``#train`` and the like."""
WORDS = frozenset({"tasks"})
"""Names that must not be files: task files of lm-eval can name Python code to run."""
JSON_OR_FILE = frozenset({"architecture"})
