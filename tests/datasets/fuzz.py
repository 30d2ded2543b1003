"""Read damaged copies of a data set: `python tests/datasets/fuzz.py FOLDER MUTATIONS SEED`.

Prints as JSON how many copies were read and refused, and the peak memory. Anything but a
`ValueError` or an `OSError` ends the run with its traceback.
"""

import json
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from worldmodel.datasets.open_dataset import open_dataset

TOKENS = [b"1e400", b"NaN", b"-1", b"null", b"[]", b"{}", b'"x"', b"99999999999999", b"\x00", b"0"]
"""Values that replace a digit."""


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert or repeat bytes, or put an odd value in place of a number."""
    kind = draw.choice(["flip", "flip", "cut", "insert", "repeat", "token"])
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
    digits = [i for i, byte in enumerate(data[:20_000]) if byte in b"0123456789"]
    if not digits:
        return data
    start = draw.choice(digits)
    return data[:start] + draw.choice(TOKENS) + data[start + 1 :]


def read_all(folder: Path) -> None:
    """Everything that a command might read."""
    dataset = open_dataset(folder)
    for name in dataset.episode_ids:
        dataset.summary(name)
        trajectory = dataset.episode(name)
        dict(trajectory.signals)
        for frames in trajectory.frames.values():
            frames[:]


def main(folder: Path, mutations: int, seed: int) -> None:
    """Damage one file of a copy at a time and read the copy."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    draw, counts = random.Random(seed), {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        for _ in range(mutations):
            shutil.copytree(folder, copy)
            target = copy / draw.choice(files).relative_to(folder)
            target.write_bytes(mutate(target.read_bytes(), draw))
            try:
                read_all(copy)
                counts["read"] += 1
            except (ValueError, OSError):
                counts["refused"] += 1
            shutil.rmtree(copy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({**counts, "peak_mib": peak}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
