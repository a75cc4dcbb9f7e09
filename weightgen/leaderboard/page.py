"""One self-contained HTML page: inline SVG plots, tables that sort by a click, no script or style from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from weightgen.leaderboard.markdown import fewer, groups, ranked, shown
from weightgen.leaderboard.read import Entry, Section, Table

COLOURS = ("#2563a8", "#c2571a", "#2f855a", "#7b5ea7", "#b7791f", "#4a5568", "#c53030", "#2c7a7b")
ROW, BAR, LEFT, WIDTH, RIGHT = 22, 7, 230, 760, 70
MOST = 24
"""Methods a plot shows."""
STYLE = """
:root { color-scheme: light; --ink: #1f2933; --quiet: #616e7c; --line: #e4e7eb; --soft: #f5f7fa; --accent: #2563a8; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; }
header { padding: 28px 32px 18px; border-bottom: 1px solid var(--line); }
h1 { margin: 0 0 4px; font-size: 26px; } h2 { margin: 0; font-size: 21px; } h3 { margin: 26px 0 6px; font-size: 16px; }
header p, .files, .said { margin: 0; color: var(--quiet); }
.said { margin: 4px 0 8px; color: var(--ink); border-left: 3px solid var(--accent); padding-left: 10px; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid var(--line); padding: 8px 32px; z-index: 1; }
nav a { margin-right: 16px; color: var(--accent); text-decoration: none; white-space: nowrap; }
main { padding: 8px 32px 48px; max-width: 1500px; }
.pair { display: flex; flex-wrap: wrap; gap: 4px 36px; align-items: flex-start; } .pair > div { max-width: 100%; }
section { padding: 26px 0 8px; scroll-margin-top: 40px; }
figure { margin: 8px 0 4px; overflow-x: auto; } svg { display: block; font: 12px system-ui, sans-serif; }
.legend span { margin-right: 14px; white-space: nowrap; font-size: 13px; color: var(--quiet); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 8px 0; }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 200px; }
th { cursor: pointer; user-select: none; background: var(--soft); font-weight: 600; }
th::after { content: "\\2195"; color: #b8c2cc; margin-left: 5px; font-weight: 400; }
th[data-order="down"]::after { content: "\\2193"; color: var(--accent); }
th[data-order="up"]::after { content: "\\2191"; color: var(--accent); }
td.best { font-weight: 650; color: var(--accent); } td small { color: var(--quiet); }
"""
SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
  const down = head.dataset.order !== "down";
  for (const other of head.parentNode.children) delete other.dataset.order;
  head.dataset.order = down ? "down" : "up";
  const value = row => row.children[column].dataset.value ?? row.children[column].textContent;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)], [m, n] = [parseFloat(x), parseFloat(y)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(m) || isNaN(n) ? y.localeCompare(x) : n - m;
    return down ? order : -order;
  });
  table.tBodies[0].append(...rows);
});
"""


def page(sections: Sequence[Section], title: str) -> str:
    """The whole page.

    Args:
        sections: of results.
        title: of the page.
    """
    shown_sections = [section for section in sections if section.tables]
    links = "".join(f'<a href="#{escape(one.name)}">{_words(one.name)}</a>' for one in shown_sections)
    rest = [one.name for one in sections if not one.tables]
    other = f" Without a comparison of methods: {escape(', '.join(rest))}." if rest else ""
    files = sum(section.files for section in sections)
    body = "".join(_section(section) for section in shown_sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>Rendered from {files} saved result files; nothing was measured for this "
        f"page. Click a heading to sort.{other}</p></header><nav>{links}</nav><main>{body}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _section(section: Section) -> str:
    tables = "".join(_table(table) for table in section.tables)
    return (
        f'<section id="{escape(section.name)}"><h2>{_words(section.name)}</h2>'
        f'<p class="files">from {section.files} saved file{"s" * (section.files > 1)}</p>{tables}</section>'
    )


def _table(table: Table) -> str:
    columns, rows = groups(table), ranked(table)
    heads = "".join(f"<th>{escape(head)}</th>" for head in (_unit(table), *(c or "value" for c in columns), "tasks"))
    best = {c: max((e[c].mean for _, e in rows if c in e), default=0.0) for c in columns}
    lines = []
    for name, entries in rows:
        tasks = max(entry.tasks for entry in entries.values())
        cells = [_cell(entries.get(column), table.metric, best[column], tasks) for column in columns]
        lines.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}<td>{tasks}</td></tr>")
    said = f'<p class="said">{escape(table.said)}</p>' if table.said else ""
    return (
        f'<h3>{_words(table.title)}</h3>{said}<div class="pair"><div>{_plot(table)}</div>'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div></div>'
    )


def _cell(entry: Entry | None, metric: str, best: float, tasks: int) -> str:
    if entry is None:
        return '<td data-value=""></td>'
    spread = "" if entry.spread is None else f" <small>± {shown(entry.spread, metric)}</small>"
    kind = ' class="best"' if entry.mean == best else ""
    value = f"{shown(entry.mean, metric)}{spread}<small>{fewer(entry, tasks)}</small>"
    return f'<td{kind} data-value="{entry.mean:.6f}">{value}</td>'


def _plot(table: Table) -> str:
    """Horizontal bars, a group beside the other, with a dot for every task."""
    columns, rows = groups(table), ranked(table)[:MOST]
    high = max((v for e in table.entries for v in e.values.values()), default=1.0)
    low = min(0.0, min((v for e in table.entries for v in e.values.values()), default=0.0))
    high = 1.0 if 0.5 < high <= 1 else high or 1.0
    scale = (WIDTH - LEFT - RIGHT) / ((high - low) or 1.0)

    def at(value: float) -> float:
        return LEFT + (value - low) * scale

    parts, y = [], 8.0
    for name, entries in rows:
        height = max(ROW, BAR * len(entries) + 8)
        label = escape(name if len(name) <= 34 else name[:33] + "…")
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + height / 2 + 4:.1f}" text-anchor="end" fill="#1f2933">'
            f"<title>{escape(name)}</title>{label}</text>"
        )
        top = y + (height - BAR * len(entries)) / 2
        for column in columns:
            if (entry := entries.get(column)) is None:
                continue
            colour = COLOURS[columns.index(column) % len(COLOURS)]
            parts.append(_bar(entry, at, top, colour, table.metric, column, len(entries) == 1))
            top += BAR
        y += height
    ticks = "".join(
        f'<line x1="{at(v):.1f}" x2="{at(v):.1f}" y1="4" y2="{y:.1f}" stroke="#e4e7eb"/>'
        f'<text x="{at(v):.1f}" y="{y + 16:.1f}" text-anchor="middle" fill="#616e7c">{shown(v, table.metric)}</text>'
        for v in (low + (high - low) * i / 5 for i in range(6))
    )
    more = len(ranked(table)) - len(rows)
    note = f'<p class="files">The plot leaves out {more} methods.</p>' if more else ""
    legend = "".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{escape(column)}</span>'
        for i, column in enumerate(columns)
        if column
    )
    svg = f'<svg width="{WIDTH}" height="{y + 24:.0f}" role="img">{ticks}{"".join(parts)}</svg>'
    return f'<div class="legend">{legend}</div><figure>{svg}</figure>{note}'


def _bar(
    entry: Entry, at: Callable[[float], float], y: float, colour: str, metric: str, column: str, alone: bool
) -> str:
    left, right = sorted((at(0.0), at(entry.mean)))
    about = f"{entry.method} {column}: {shown(entry.mean, metric)}"
    dots = ""
    if len(entry.values) > 1:
        dots = "".join(
            f'<circle cx="{at(value):.1f}" cy="{y + BAR / 2:.1f}" r="1.8" fill="#1f2933" fill-opacity="0.45"/>'
            for value in entry.values.values()
        )
    elif entry.spread is not None:
        ends = at(entry.mean - entry.spread), at(entry.mean + entry.spread)
        dots = (
            f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + BAR / 2:.1f}" y2="{y + BAR / 2:.1f}" '
            'stroke="#1f2933" stroke-opacity="0.6"/>'
        )
    text = f'<text x="{WIDTH - RIGHT + 8}" y="{y + 8:.1f}" fill="#1f2933">{shown(entry.mean, metric)}</text>'
    return (
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(right - left, 1):.1f}" height="{BAR - 1}" rx="1.5" '
        f'fill="{colour}"><title>{escape(about)}</title></rect>{dots}{text if alone else ""}'
    )


def _unit(table: Table) -> str:
    return table.metric.replace("_", " ") + (", %" if table.metric != "score" else "")


def _words(name: str) -> str:
    return escape(name.replace("_", " "))
