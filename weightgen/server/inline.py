"""Examples that came inside a request become the file that the job reads."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightgen.server.registry import ARRAYS, LABELLED, TEXTS
from zoo.errors import UsageError


def write_inline(inline: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write what was sent beside a job.

    Args:
        inline: values of the inline fields of a request, at most one.
        folder: of the job.

    Returns:
        The argument ``data`` of the job, if something was sent.

    Raises:
        UsageError: if arrays are not rectangular.
    """
    if TEXTS in inline:
        path = folder / "texts.txt"
        path.write_text("".join(" ".join(text.split()) + "\n" for text in inline[TEXTS]), "utf-8", "replace")
    elif LABELLED in inline:
        path = folder / "labelled.csv"
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("text", "label"), *((row["text"], row["label"]) for row in inline[LABELLED])])
    elif ARRAYS in inline:
        import numpy as np

        path = folder / "examples.npz"
        try:
            np.savez(path, x=np.asarray(inline[ARRAYS]["x"], np.float32), y=np.asarray(inline[ARRAYS]["y"], np.int64))
        except (ValueError, TypeError) as error:
            raise UsageError(f"the arrays cannot be used ({error})", "send x as nested lists of numbers") from None
    else:
        return {}
    return {"data": str(path)}
