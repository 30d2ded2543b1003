"""Read damaged copies of a folder: `python tests/fuzz.py READER FOLDER MUTATIONS SEED`.

Prints as JSON how many copies were read and refused, and the peak memory. Anything but a
`ValueError` or an `OSError`, a read that takes a minute and memory beyond the limit end the run.
"""

import faulthandler
import json
import random
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HANG_S = 60
"""A read that takes longer ends the run with the stack."""
MEMORY_BYTES = 6 * 2**30
TOKENS = [b"1e400", b"NaN", b"-1", b"null", b"[]", b"{}", b'"x"', b"99999999999999", b"\x00", b"0"]
"""Values that replace a digit."""
VALUES = [
    0, -1, 1.5, 2**31, 2**63, 10**30, 1e308, -1e308, True, None, "", "x", "../../x", "/dev/zero",
    "\u202e\x1b[2J", "{i:0300000000d}", [], {}, [[]], [-1], [2**40, 2**40], {"a": 1}, "x" * 5000,
]  # fmt: skip
"""Values that replace a value of a JSON file."""


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert or repeat bytes, or put an odd value in place of a number or JSON value."""
    kind = draw.choice(["flip", "flip", "cut", "insert", "repeat", "token", "value", "value"])
    place = draw.randrange(len(data) + 1)
    if kind == "flip" and data:
        content = bytearray(data)
        for _ in range(draw.choice([1, 1, 4, 32])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        return bytes(content)
    if kind == "cut":
        return data[:place]
    if kind == "insert":
        return data[:place] + draw.randbytes(draw.randrange(1, 64)) + data[place:]
    if kind == "repeat":
        return data[:place] + data[max(0, place - 64) :]
    if kind == "value" and (changed := changed_value(data, draw)) is not None:
        return changed
    digits = [i for i, byte in enumerate(data[:20_000]) if byte in b"0123456789"]
    if not digits:
        return data
    start = draw.choice(digits)
    return data[:start] + draw.choice(TOKENS) + data[start + 1 :]


def changed_value(data: bytes, draw: random.Random) -> bytes | None:
    """A JSON text, or a safetensors file, with one value replaced or removed; None: it is none."""
    head, text, rest = b"", data, b""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and length <= len(data):
        head, text, rest = data[:8], data[8 : 8 + length], data[8 + length :]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    places = list(containers(content))
    if not places:
        return None
    parent, key = draw.choice(places)
    if draw.random() < 0.2:
        del parent[key]
    else:
        parent[key] = draw.choice(VALUES)
    changed = json.dumps(content).encode()
    if draw.random() < 0.05:
        changed = changed.replace(b"}", b',"deep":' + b"[" * 100_000, 1)
    return (len(changed).to_bytes(8, "little") if head else b"") + changed + rest


def containers(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object of a JSON value with each of its keys; long lists by their ends."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))[:3])
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from containers(value[key])


def read_dataset(folder: Path) -> None:
    """Everything that a command might read."""
    from worldmodel.datasets.open_dataset import open_dataset

    dataset = open_dataset(folder)
    for name in dataset.episode_ids:
        dataset.summary(name)
        trajectory = dataset.episode(name)
        dict(trajectory.signals)
        for frames in trajectory.frames.values():
            frames[:]


def read_log(folder: Path) -> None:
    """Every rollout of a log."""
    from worldmodel.datasets.rollout_log import RolloutLog

    log = RolloutLog.open(folder)
    for name in log.rollouts():
        log.attributes_of(name)
        log.read(name)


def read_model(folder: Path) -> None:
    """A checkpoint."""
    from worldmodel.model import WorldModel

    WorldModel.load(folder)


def read_calibrated(folder: Path) -> None:
    """A checkpoint with its monitor, and its gate."""
    from worldmodel.calibration.calibrated import Checkpoint

    assert Checkpoint.load(folder, stages=()).gate


def read_published(folder: Path) -> None:
    """A published checkpoint with its config.yaml."""
    from worldmodel.c3_import import load_c3

    load_c3(folder)


def read_columns(folder: Path) -> None:
    """A file for `--action-spec`."""
    from worldmodel.datasets.readers.pose_columns import PoseColumns

    PoseColumns.read(folder / "spec.toml")


READERS: dict[str, Callable[[Path], None]] = {
    "dataset": read_dataset,
    "rollout-log": read_log,
    "model": read_model,
    "calibrated": read_calibrated,
    "published": read_published,
    "action-spec": read_columns,
}


def main(reader: str, folder: Path, mutations: int, seed: int, part: str = "") -> None:
    """Damage one file of a copy at a time (below `part`, if given) and read the copy."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    read, draw, counts = READERS[reader], random.Random(seed), {"read": 0, "refused": 0}
    read(folder)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / "copy"))
        files = sorted(path for path in (copy / part).rglob("*") if path.is_file())
        for number in range(mutations):
            target = draw.choice(files)
            intact = target.read_bytes()
            target.write_bytes(mutate(intact, draw))
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            try:
                read(copy)
                counts["read"] += 1
            except (ValueError, OSError):
                counts["refused"] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{reader}-{seed}-{number}"
                shutil.copytree(copy, kept, dirs_exist_ok=True)
                sys.stderr.write(f"mutation {number} of {target.relative_to(copy)}: see {kept}\n")
                raise
            faulthandler.cancel_dump_traceback_later()
            target.write_bytes(intact)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({**counts, "peak_mib": peak}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:6])
