"""The contract of the command line: exit codes and one-line errors, whatever the subcommand."""

import errno
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace

import pytest

from worldmodel import cli


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command for these tests."""

    rate: float = 5.0
    """Frames per second (Hz)."""


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `worldmodel train` with another body: `train(body, *options)`."""

    def call(body: Callable[[Command], int], *options: str) -> int:
        module = SimpleNamespace(__doc__="Train.", Command=Command, run=body)
        monkeypatch.setitem(sys.modules, "worldmodel.cli.train", module)
        return cli.main(["train", *options])

    return call


def raising(error: BaseException) -> Callable[[Command], int]:
    def body(command: Command) -> int:
        raise error

    return body


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_usage_lists_every_command_and_the_exit_codes(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)
    assert "0: done; 1:" in text


@pytest.mark.parametrize("argv", [["data"], ["data", "--help"]])
def test_a_group_has_a_page_of_its_own(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: worldmodel data COMMAND")
    shown = {name for name in cli.COMMANDS if f"\n  {name} " in text}
    assert shown == {name for name in cli.COMMANDS if name.startswith("data ")}


def test_the_version_is_that_of_the_installed_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"worldmodel {version('worldmodel')}\n"


@pytest.mark.parametrize("code", [0, 1])
def test_exit_code_is_the_commands_own(train: Callable[..., int], code: int) -> None:
    assert train(lambda _: code) == code


def test_options_arrive(train: Callable[..., int]) -> None:
    seen: list[float] = []
    assert train(lambda command: seen.append(command.rate) or 0, "--rate", "15") == 0
    assert seen == [15.0]


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ModuleNotFoundError])
def test_wrong_input_is_one_line_and_exit_code_2(
    kind: type[Exception], train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(raising(kind("`path` is\n  empty."))) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: `path` is empty.\n"
    assert captured.out == ""


def test_a_full_disk_and_full_memory_are_no_defects(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(raising(OSError(errno.ENOSPC, "No space left on device", "log"))) == 2
    assert capsys.readouterr().err == (
        "error: [Errno 28] No space left on device: 'log': the disk is full; make room and run the "
        "command again.\n"
    )
    assert train(raising(MemoryError())) == 2
    assert capsys.readouterr().err.startswith("error: not enough memory; end other programs")


def test_a_defect_of_ours_is_one_line_and_exit_code_3(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(raising(KeyError("ours"))) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected KeyError: 'ours'; this is a defect of worldmodel")
    assert said.count("\n") == 1


def test_a_defect_keeps_its_traceback_if_asked(train: Callable[..., int]) -> None:
    with pytest.raises(KeyError, match="ours"):
        train(raising(KeyError("ours")), "--traceback")


def test_control_sequences_in_data_never_reach_the_terminal(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def body(command: Command) -> int:
        sys.stdout.write("lift \x1b]0;owned\x07 the cup\n")
        raise ValueError("episode '\x1b[2J'")

    assert train(body) == 2
    captured = capsys.readouterr()
    assert captured.out == "lift \\x1b]0;owned\\x07 the cup\n"
    assert captured.err == "error: episode '\\x1b[2J'\n"


def test_interruption_exits_as_shells_expect(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: interrupted.\n"


@pytest.mark.parametrize("options", [["--rte", "5"], ["--rate", "fast"], ["surplus"]])
def test_wrong_options_exit_with_code_2(
    options: list[str], train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train(lambda _: 0, *options)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert options[0].strip("-") in captured.err


def test_help_of_a_command_shows_units_and_defaults(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train(lambda _: 0, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: worldmodel train" in text
    assert "(Hz)" in text
    assert "(default: 5.0)" in text


@pytest.mark.parametrize(
    ("argv", "given", "hint"),
    [
        (["trian"], "trian", " Did you mean 'train'?"),
        (["data", "inof", "folder"], "data inof", " Did you mean 'data info'?"),
        (["--zzz"], "--zzz", ""),
    ],
)
def test_unknown_command_names_the_closest(
    argv: list[str], given: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    expected = f"error: Unknown command {given!r}; `worldmodel --help` lists them all.{hint}\n"
    assert capsys.readouterr().err == expected


def test_a_reader_that_leaves_is_not_an_error() -> None:
    script = (
        "import dataclasses, sys, types; from worldmodel import cli\n"
        "Command = dataclasses.make_dataclass('Command', [])\n"
        "def run(command): print('row\\n' * 100_000); return 0\n"
        "sys.modules['worldmodel.cli.train'] = types.SimpleNamespace("
        "__doc__='Train.', Command=Command, run=run)\n"
        "sys.exit(cli.main(['train']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"row\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
