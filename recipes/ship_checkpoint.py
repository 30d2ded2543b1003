"""Copy a trained model with half-precision weights; calibrate the copy afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from worldmodel.model import WorldModel


def main() -> None:
    """Parse the folders and write the copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    WorldModel.load(arguments.source).save(arguments.target, dtype=torch.float16)
    print(arguments.target)


if __name__ == "__main__":
    main()
