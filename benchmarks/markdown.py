"""Markdown tables of benchmark results."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Table with a header, one line per row.

    >>> print(markdown_table(("part", "ms"), [("encode", 1.5)]))
    | part | ms |
    | --- | --- |
    | encode | 1.5 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
