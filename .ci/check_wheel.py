"""Fail unless a wheel holds every file of the package and nothing top-level but `worldmodel`."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def expected() -> set[str]:
    """Every file of the package in this checkout, as the wheel names it."""
    package = ROOT / "worldmodel"
    folders = [package, *(link.resolve() for link in package.iterdir() if link.is_symlink())]
    prefixes = ["worldmodel", *(f"worldmodel/{folder.name}" for folder in folders[1:])]
    names = {"worldmodel/py.typed"}
    for folder, prefix in zip(folders, prefixes, strict=True):
        for pattern in ("**/*.py", "**/*.css", "checkpoints/**/*"):
            files = [path for path in folder.glob(pattern) if path.is_file()]
            names |= {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in files}
    return names


def main(wheel: str) -> int:
    """Print what is missing or too much; 0 if nothing is."""
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names}
    problems = [f"missing: {name}" for name in sorted(expected() - names)]
    problems += [f"top-level: {name}" for name in sorted(top) if not name.startswith("worldmodel")]
    print("\n".join(problems) or f"{Path(wheel).name}: {len(names)} files, complete.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
