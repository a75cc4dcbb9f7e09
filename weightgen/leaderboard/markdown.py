"""Tables as sections of a Markdown page; other sections of the page stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from weightgen.leaderboard.read import Entry, Section, Table


def shown(value: float, metric: str) -> str:
    """A value as people read it: shares in percent."""
    return f"{100 * value:.1f}" if metric != "score" else f"{value:.4g}"


def ranked(table: Table) -> list[tuple[str, dict[str, Entry]]]:
    """Methods with their entries by group, the best on average first."""
    by_method: dict[str, dict[str, Entry]] = {}
    for entry in table.entries:
        by_method.setdefault(entry.method, {})[entry.group] = entry
    means = {name: sum(e.mean for e in entries.values()) / len(entries) for name, entries in by_method.items()}
    return [(name, by_method[name]) for name in sorted(by_method, key=lambda name: -means[name])]


def groups(table: Table) -> list[str]:
    """Settings of a table, in order; numbers in them count as numbers."""

    def key(group: str) -> list[tuple[int, float, str]]:
        return [(0, float(word), "") if word.isdigit() else (1, 0.0, word) for word in group.split()]

    return sorted({entry.group for entry in table.entries}, key=key)


def markdown(section: Section) -> str:
    """One section."""
    lines = [f"## {section.name.replace('_', ' ')}", "", f"From {section.files} saved files.", ""]
    for table in section.tables:
        columns = groups(table)
        unit = table.metric.replace("_", " ") + (", %" if table.metric != "score" else "")
        lines += [f"### {table.title.replace('_', ' ')}", ""]
        lines += [table.said, ""] if table.said else []
        lines.append(f"| {unit} | {' | '.join(column or 'value' for column in columns)} | tasks |")
        lines.append("|---|" + "---|" * (len(columns) + 1))
        for name, entries in ranked(table):
            tasks = max(entry.tasks for entry in entries.values())
            cells = [_cell(entries.get(column), table.metric, tasks) for column in columns]
            lines.append(f"| {name.replace('|', '/')} | {' | '.join(cells)} | {tasks} |")
        lines.append("")
    if not section.tables:
        lines += ["No comparison of methods in a form that is known.", ""]
    return "\n".join(lines).strip()


def fewer(entry: Entry, tasks: int) -> str:
    """A remark on a value that stands for fewer tasks than others of its row."""
    return "" if entry.tasks == tasks else f" (of {entry.tasks})"


def _cell(entry: Entry | None, metric: str, tasks: int) -> str:
    if entry is None:
        return ""
    spread = "" if entry.spread is None else f" ± {shown(entry.spread, metric)}"
    return f"{shown(entry.mean, metric)}{spread}{fewer(entry, tasks)}"


def put_sections(page: str, sections: Sequence[Section]) -> str:
    """A page with every section replaced or added at its end, between marks of its own."""
    for section in sections:
        start, end = f"<!-- leaderboard {section.name}: start -->", f"<!-- leaderboard {section.name}: end -->"
        block = f"{start}\n\n{markdown(section)}\n\n{end}"
        if start in page and end in page:
            before, rest = page.split(start, 1)
            page = before + block + rest.split(end, 1)[1]
        else:
            page = f"{page.rstrip()}\n\n{block}\n"
    return page
