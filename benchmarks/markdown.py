"""Markdown tables of benchmark results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Table with a header, one line per row.

    >>> print(markdown_table(("part", "ms"), [("encode", 1.5)]))
    | part | ms |
    | --- | --- |
    | encode | 1.5 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def results_page(title: str, module: str, facts: Mapping[str, str], tables: Sequence[str]) -> str:
    """Page for `benchmarks/results`: the command of this process, its facts, and its tables."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    blocks = "\n\n".join(f"```\n{table}\n```" for table in tables)
    return f"# {title}\n\n`{command}`; {'; '.join(facts.values())}.\n\n{blocks}\n"
