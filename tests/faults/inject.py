"""Break off a scenario at its n-th change of a file, for every n, and check what is left.

Run with the shim preloaded: `LD_PRELOAD=shim.so python -m tests.faults.inject POINTS SCENARIO...`.
POINTS is the number of places per kind of fault; 0: all. Prints the counts as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tests.faults.scenarios import SCENARIOS, Scenario
from worldmodel.cli import exit_code

KINDS = {"kill": 1, "full disk": 2, "no memory": 3}
KILLED = 137
LIMIT_S = 30
SHIM = ctypes.CDLL(None)
NOT_RUN = 99


def in_child(action: Callable[[], int], messages: Path) -> int:
    """Exit code of `action` in a forked process, which writes its messages to a file."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    code = NOT_RUN
    try:
        signal.alarm(LIMIT_S)
        file = os.open(messages, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = action()
    except BaseException:  # noqa: BLE001 (it must not return into the parent's stack)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Injector:
    """Scenario, its old version, and the folder in which it is broken off."""

    def __init__(self, scenario: Scenario, root: Path) -> None:
        self.scenario = scenario
        self.base, self.work = root / "base", root / "work"
        self.messages, self.told = root / "messages", root / "told"
        self.base.mkdir()
        scenario.prepare(self.base)

    def run(self, number: int, kind: int) -> tuple[int, int, int, bool]:
        """Exit code, acknowledged units, count of calls, and whether the fault struck."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.base, self.work)
        self.told.write_bytes(bytes(24))

        def action() -> int:
            told = os.open(self.told, os.O_WRONLY)

            def tell(place: int, value: int) -> None:
                os.pwrite(told, value.to_bytes(8, "big"), 8 * place)

            def write() -> int:
                self.scenario.write(self.work, lambda units: tell(0, units))
                return 0

            SHIM.fault_arm(os.fsencode(self.work), ctypes.c_long(number), kind)
            code = exit_code(write)
            SHIM.fault_disarm()
            tell(1, SHIM.fault_count())
            tell(2, SHIM.fault_fired())
            return code

        code = in_child(action, self.messages)
        units, count, fired = np.frombuffer(self.told.read_bytes(), ">i8").tolist()
        return code, units, count, bool(fired) or code == KILLED

    def check(self, code: int, units: int) -> None:
        """Raise unless the old or the new version can be read, and the rest can be written."""
        scenario = self.scenario
        found = scenario.read(self.work)
        assert units <= found <= scenario.units, (units, found)
        text = self.messages.read_text()
        if code == 2:
            errors = [line for line in text.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, text
            assert "Traceback" not in text, text
        else:
            assert code in (0, KILLED), (code, text)
        assert code != 0 or found == scenario.units

        def again() -> int:
            scenario.write(self.work, lambda units: None)
            return 0 if scenario.read(self.work) == scenario.units else 1

        assert in_child(again, self.messages) == 0, self.messages.read_text()


def inject(name: str, points: int) -> dict[str, object]:
    """Inject all kinds of faults into one scenario; counts of faults and of corruptions."""
    faults, corruptions = dict.fromkeys(KINDS, 0), []
    with tempfile.TemporaryDirectory() as root:
        injector = Injector(SCENARIOS[name], Path(root))
        code, _, count, _ = injector.run(0, 0)
        injector.check(code, SCENARIOS[name].units)
        places = np.arange(1, count + 1)
        if points:
            places = np.unique(np.linspace(1, count, points + 2)[1:-1].round().astype(int))
        for kind, number in KINDS.items():
            for place in places.tolist():
                code, units, _, struck = injector.run(place, number)
                faults[kind] += struck
                try:
                    injector.check(code, units)
                except Exception as error:  # noqa: BLE001 (counted and shown)
                    corruptions.append(f"{kind} at {place}: {type(error).__name__}: {error}")
    return {"scenario": name, "calls": count, "faults": faults, "corruptions": corruptions}


if __name__ == "__main__":
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared with forks, and a killed one may hold it
    for scenario in sys.argv[2:]:
        sys.stdout.write(json.dumps(inject(scenario, int(sys.argv[1]))) + "\n")
        sys.stdout.flush()
