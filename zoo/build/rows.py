"""Rows of csv files with a label each."""

from __future__ import annotations

import csv
from pathlib import Path


def labelled_rows(path: Path, column: str) -> list[dict[str, str]]:
    """Read a csv file in UTF-8 whose first line names its columns.

    Args:
        path: the file.
        column: that has to be there beside ``label``.

    Returns:
        The rows, labels without blanks around them.

    Raises:
        ValueError: if a column is missing, or a row has nothing in it where there has to be something.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or ()
        rows = [(reader.line_num, row) for row in reader]
    if not rows or not {column, "label"} <= set(header):
        have = f"the columns {', '.join(map(repr, header))}" if header else "nothing"
        raise ValueError(
            f"a csv file needs a first line with the columns {column} and label, parted by commas, and rows below it; "
            f"this one has {have} and {len(rows)} rows"
        )
    lacking = [line for line, row in rows if row[column] is None or not (row["label"] or "").strip()]
    if lacking:
        raise ValueError(f"{len(lacking)} rows have no label, the first of them in line {lacking[0]}")
    return [{**row, "label": row["label"].strip()} for _, row in rows]
