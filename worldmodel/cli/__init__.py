"""Command line `worldmodel`: one module per subcommand, imported when it is called.

These modules import nothing heavy before `run`, so that `--help` is fast and needs no extra.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Union

import tyro

from worldmodel.cli._streams import safe_streams
from worldmodel.extras import explain_missing

COMMANDS = {
    "demo": "simulate, imagine, monitor and compare policies with the shipped checkpoint",
    "data info": "describe a dataset folder",
    "data validate": "check every episode of a dataset folder",
    "data convert": "convert a dataset folder to the project's clip store",
    "data collect": "record episodes of the embedded tabletop",
    "import": "convert a published C3 or WorldGym checkpoint to a model folder",
    "train": "train a tokenizer, a dynamics model and its confidence head",
    "calibrate": "calibrate confidence and monitor thresholds on held-out episodes",
    "certify": "measure on held-out episodes what a model may be used for",
    "imagine": "log open-loop rollouts of episodes in the world model",
    "watch": "run the monitor over recorded episodes",
    "serve": "run the monitor as a websocket service for robots",
    "evaluate": "evaluate policies in imagination",
    "report": "write the HTML report of a rollout log",
}
"""Subcommand -> one line of help; its words joined by "_" name the module that defines it."""

GROUPS = {"data": "inspect, check, convert and record datasets"}
"""First word of two-word commands -> summary of the group."""
MOVED = {("watch", "--listen"): "`worldmodel serve --listen HOST:PORT`"}
"""Command and option of earlier versions -> replacement."""

USAGE = "usage: worldmodel COMMAND [OPTIONS]\n       worldmodel --version"
FOOTER = """`worldmodel COMMAND --help` lists its options with units and defaults.
`worldmodel --tyro-print-completion bash` prints a shell completion script (also zsh, fish).
Exit code 0: done; 1: the check failed, for example an alarm; 2: wrong input; 3: a defect of
worldmodel, of which `worldmodel COMMAND --traceback` shows more."""
COMPLETION = "--tyro-print-completion"
"""Option of tyro that prints a completion script."""
TRACEBACK = "--traceback"
"""Option of every command that keeps the traceback of a defect."""
DEFECT = 3
"""Exit code after an unexpected error: a defect of worldmodel, not of the input."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells report it."""
READER_GONE = 141
"""Exit code after the reader of a pipe closed it: 128 + SIGPIPE."""


def usage(group: str = "") -> str:
    """Text of `worldmodel --help` or `worldmodel GROUP --help`."""
    listed = {name: text for name, text in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, listed)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in listed.items()]
    title = f"usage: worldmodel {group} COMMAND [OPTIONS]" if group else USAGE
    about = [f"{GROUPS[group].capitalize()}.", ""] if group else []
    return "\n".join([title, "", *about, *lines, "", FOOTER])


def split_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Name of the subcommand, and the arguments after it.

    >>> split_command(["data", "info", "folder"])
    ('data info', ['folder'])
    """
    for words in (2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in COMMANDS:
            return name, list(argv[words:])
    given = " ".join(argv[: 2 if argv[0] in GROUPS else 1])
    close = difflib.get_close_matches(given, COMMANDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown command {given!r}; `worldmodel --help` lists them all.{hint}")


def dispatch(argv: Sequence[str]) -> int:
    """Parse the options of a subcommand and run it."""
    name, rest = split_command(argv)
    for (command, option), successor in MOVED.items():
        if name == command and any(word.split("=")[0] == option for word in rest):
            raise ValueError(f"`worldmodel {command} {option}` is now {successor}.")
    return run_module(command_module(name), rest, prog=f"worldmodel {name}")


def command_module(name: str) -> Any:
    """Module of a subcommand."""
    return importlib.import_module(f"worldmodel.cli.{name.replace(' ', '_')}")


def run_module(module: Any, argv: Sequence[str], *, prog: str) -> int:
    """Parse `argv` into the `Command` of a module and pass it to the module's `run`."""
    command = tyro.cli(module.Command, args=argv, prog=prog, description=module.__doc__)
    with explain_missing(prog):
        code: int = module.run(command)
    sys.stdout.flush()  # a closed pipe raises here, not at interpreter exit
    return code


def all_commands() -> Any:
    """Type that tyro parses as any subcommand with its options, for shell completion."""
    groups: dict[str, dict[str, Any]] = {group: {} for group in ("", *GROUPS)}
    for name in COMMANDS:
        group, _, word = name.rpartition(" ")
        groups[group][word] = command_module(name).Command
    return subcommands(groups.pop("") | {group: subcommands(groups[group]) for group in GROUPS})


def subcommands(kinds: Mapping[str, Any]) -> Any:
    """Type that tyro parses as a choice between words, each with a type of its own."""
    choices = (
        Annotated[kind, tyro.conf.subcommand(word, description="")] for word, kind in kinds.items()
    )
    return Union[tuple(choices)]  # noqa: UP007


def help_page(argv: Sequence[str]) -> str | None:
    """Page of commands that `argv` asks for; None if `argv` names a command.

    >>> help_page(["train", "--help"]) is None
    True
    >>> help_page(["data", "--help"]).splitlines()[0]
    'usage: worldmodel data COMMAND [OPTIONS]'
    """
    group = argv[0] if argv and argv[0] in GROUPS else ""
    rest = argv[1:] if group else argv
    return usage(group) if not rest or rest[0] in ("-h", "--help") else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; wrong input prints one line to standard error and returns 2."""
    argv = sys.argv[1:] if argv is None else argv
    keep_traceback = TRACEBACK in argv
    argv = [word for word in argv if word != TRACEBACK]
    with safe_streams():
        return exit_code(lambda: answer(argv), keep_traceback=keep_traceback)


def answer(argv: Sequence[str]) -> int:
    """Print the version, a completion script or a help page, or run the command asked for."""
    if argv and argv[0] == "--version":
        print(f"worldmodel {version('worldmodel')}")
        return 0
    if argv and argv[0] == COMPLETION:
        tyro.cli(all_commands(), args=argv, prog="worldmodel")  # prints, and exits
    if page := help_page(argv):
        print(page)
        return 0
    return dispatch(argv)


def advice(error: Exception) -> str:
    """What to do about a full disk."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ": the disk is full; make room and run the command again."
    return ""


def exit_code(action: Callable[[], int], *, keep_traceback: bool = False) -> int:
    """Exit code of `action`; wrong input prints one line to standard error and returns 2.

    Any other error is a defect of ours: one line and exit code 3, or the traceback if asked for.
    """
    try:
        return action()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}{advice(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print(
            "error: not enough memory; end other programs, or use a machine with more.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if keep_traceback:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(
            f"error: unexpected {said[:300]}; this is a defect of worldmodel, not of your input. "
            f"Run the command again with {TRACEBACK} and report what it prints (SECURITY.md says "
            "where).",
            file=sys.stderr,
        )
        return DEFECT
