"""Budgets: the largest sizes that a file may declare before memory is allocated for it.

Files are not trusted: a few bytes may claim terabytes. Every reader compares what a file claims
with its real size or with these limits. `WORLDMODEL_BUDGET=8` in the environment multiplies all of
them by 8.
"""

from __future__ import annotations

import math
import os

VARIABLE = "WORLDMODEL_BUDGET"
IMAGE_PIXELS = 2**26
"""Pixels of one image or video frame (8192 x 8192)."""
ARRAY_BYTES = 2**34
"""Bytes of one array in memory (16 GiB)."""
DIMENSION = 2**20
"""A dimension in the config of a network."""
LAYERS = 2**10
"""Layers in the config of a network."""
TEXT_BYTES = 2**28
"""Bytes of one JSON, TOML or YAML file (256 MiB)."""


def factor() -> float:
    """Budget factor from the environment.

    Raises:
        ValueError: it is no positive number.
    """
    text = os.environ.get(VARIABLE, "1")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"The environment's {VARIABLE} must be a positive number, got {text!r}.")
    return value


def require(claimed: int, budget: int, what: str) -> None:
    """Raise ValueError if a declared size exceeds a budget.

    Raises:
        ValueError: naming `what`, the claim and the budget.

    >>> require(10, IMAGE_PIXELS, "image")
    """
    limit = budget * factor()
    if not claimed <= limit:
        raise ValueError(
            f"{what} claims {claimed:.4g}, more than the {limit:.4g} allowed; if it is right, set "
            f"{VARIABLE} to a factor above 1."
        )
