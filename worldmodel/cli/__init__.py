"""The `worldmodel` command: one module per subcommand, imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import tyro

COMMANDS = {
    "demo": "simulate, imagine, monitor and compare policies with the shipped checkpoint",
    "data info": "say what a dataset folder holds",
    "data validate": "check every episode of a dataset folder",
    "data convert": "convert a dataset folder to the project's clip store",
    "data collect": "record episodes of the embedded tabletop",
    "train": "train a tokenizer, a dynamics model and its confidence head",
    "calibrate": "calibrate confidence and monitor thresholds on held-out episodes",
    "imagine": "roll episodes out in the world model and log them",
    "watch": "run the monitor over recorded episodes",
    "evaluate": "evaluate policies in imagination",
    "report": "write the HTML report of a rollout log",
}
"""Subcommand -> one line of help. Module `worldmodel.cli.<words joined by _>` holds `Command` and `run`."""


def usage() -> str:
    """The text of `worldmodel --help`."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: worldmodel COMMAND [OPTIONS]", "", *lines, ""]
        + ["`worldmodel COMMAND --help` lists its options with units and defaults."]
        + ["Exit code 0: done; 1: a problem was found that the run was asked to look for; 2: wrong input."]
    )


def split_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The subcommand's name ("" if unknown) and the arguments after it."""
    for words in (2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in COMMANDS:
            return name, list(argv[words:])
    return "", list(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; wrong input is one line on standard error and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, rest = split_command(argv)
    if not name:
        print(f"error: unknown command {' '.join(argv[:2])!r}; `worldmodel --help` lists them.", file=sys.stderr)
        return 2
    module = importlib.import_module(f"worldmodel.cli.{name.replace(' ', '_')}")
    command = tyro.cli(module.Command, args=rest, prog=f"worldmodel {name}", description=module.__doc__)
    try:
        return module.run(command)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
