"""Render an analysis as HTML for a notebook, with every name escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from tieops.analysis.report.entries import Entry, entries_of, shape_text
from tieops.analysis.report.sections import headline, sections_of

if TYPE_CHECKING:
    from tieops.analysis.report.findings import Findings

__all__ = ["as_html"]

_WIDTH = 160
"""Columns: a notebook scrolls sideways."""
_STYLE = (
    "<style>.tieops table{border-collapse:collapse}"
    ".tieops td,.tieops th{text-align:left;vertical-align:top;padding:1px 10px 1px 0}"
    ".tieops td:last-child{text-align:right;white-space:nowrap}"
    ".tieops pre{margin:0;background:none;white-space:pre-wrap}</style>"
)


def as_html(analysis: Findings) -> str:
    """Return an analysis as a fragment of HTML: no script, nothing loaded, every name escaped."""
    head = "<br>".join(map(escape, headline(analysis, _WIDTH)))
    parts = [_STYLE, f'<div class="tieops"><p>{head}</p>']
    for section in sections_of(analysis, _WIDTH):
        parts.append(f"<p><b>{escape(section.title)}</b> {escape(section.summary)}</p>")
        lines = [line for item in section.items for line in item]
        if lines:
            parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    titles = ("layer", "type", "input", "output", "learnables", "stores")
    parts += ["<details open><summary>layers</summary><table>", _row("th", map(escape, titles))]
    parts += [_row("td", _cells(entry)) for entry in entries_of(analysis.rows, analysis.repeats)]
    return "".join([*parts, "</table></details></div>"])


def _cells(entry: Entry) -> Iterable[str]:
    """Return the cells of an entry as HTML."""
    indent = "&nbsp;" * 4 * entry.depth
    learnables = "<br>".join(escape(text) for text, _ in entry.learnables)
    stores = "<br>".join(escape(text) for _, text in entry.learnables) or escape(entry.stores)
    shapes = shape_text(entry.input), shape_text(entry.output)
    plain = (escape(text) for text in (entry.kind, *shapes))
    return indent + escape(entry.name), *plain, learnables, stores


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
