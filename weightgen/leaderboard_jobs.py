"""The job ``leaderboard``; see ``weightgen.jobs``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightgen.results import JobResult

PAGE, TEXT = "index.html", "results.md"


@dataclass(frozen=True)
class LeaderboardResult(JobResult):
    """What was rendered.

    Attributes:
        page: the HTML page.
        text: the Markdown page.
        files: result files that were read.
        tables: comparisons of methods that were found in them, by section.
    """

    page: Path
    text: Path
    files: int
    tables: dict[str, int]

    def summary(self) -> str:
        found = ", ".join(f"{name} {count}" for name, count in self.tables.items())
        return f"{self.page}, {self.text}: {sum(self.tables.values())} tables from {self.files} files ({found})"


def leaderboard(results: Path | str, out: Path | str, title: str = "weightgen: what was measured") -> LeaderboardResult:
    """Render saved results: sections of a Markdown page, and one HTML page that needs nothing else.

    Args:
        results: folder of JSON files: those of ``solve``, of ``evaluate`` and of the benchmarks.
        out: folder for ``index.html`` and ``results.md``; sections that others wrote into the latter stay.
        title: of the pages.

    Returns:
        The pages and what is on them.

    Raises:
        UsageError: if there are no results, or ``out`` is a file.
        BadArtefact: if a file is no JSON.
    """
    from weightgen.leaderboard.markdown import put_sections
    from weightgen.leaderboard.page import page
    from weightgen.leaderboard.read import read_results
    from zoo.errors import UsageError
    from zoo.store import disk_errors

    results, out = Path(results), Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder")
    sections = read_results(results)
    text = out / TEXT
    before = text.read_text(encoding="utf-8") if text.is_file() else f"# {title}\n"
    contents = {out / PAGE: page(sections, title), text: put_sections(before, sections)}
    with disk_errors(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            side = path.with_suffix(".partial")
            side.write_text(content, encoding="utf-8")
            side.replace(path)
    counts = {section.name: len(section.tables) for section in sections}
    return LeaderboardResult(out / PAGE, text, sum(section.files for section in sections), counts)
