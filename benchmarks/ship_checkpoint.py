"""Copy a calibrated model into the package, weights in half precision."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from worldmodel.model import WorldModel

LIMIT_MB = 16.0


def main() -> None:
    """Write the checkpoint and refuse one that is too large to ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    target: Path = arguments.target
    WorldModel.load(arguments.source).save(target, dtype=torch.float16)
    shutil.copytree(arguments.source / "monitor", target / "monitor", dirs_exist_ok=True)
    shutil.copy2(arguments.source / "README.md", target / "README.md")
    size_mb = sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e6
    print(f"{target}: {size_mb:.1f} MB")
    if size_mb > LIMIT_MB:
        raise SystemExit(f"The checkpoint has {size_mb:.1f} MB; at most {LIMIT_MB} MB are shipped.")


if __name__ == "__main__":
    main()
