"""One page of results, made of sections that each script renders from its own saved JSON."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"


def put(section: str, text: str) -> None:
    """Replace one section of the page, or add it at the end; the others stay as they are."""
    start, end = f"<!-- {section}: start -->", f"<!-- {section}: end -->"
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "# Results\n"
    block = f"{start}\n\n{text.strip()}\n\n{end}"
    if start in page:
        before, rest = page.split(start, 1)
        page = before + block + rest.split(end, 1)[1]
    else:
        page = f"{page.rstrip()}\n\n{block}\n"
    PAGE.write_text(page, encoding="utf-8")
