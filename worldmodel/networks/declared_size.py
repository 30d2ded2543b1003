"""Check of a stored config against the size of its weights, before memory is allocated for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from worldmodel import budgets


def require_declared_size(
    build: Callable[[], nn.Module], config: Mapping[str, Any], num_bytes: int
) -> None:
    """Raise unless a network that a config declares fits the size of its files.

    The network is built without memory (on the "meta" device) first.

    Args:
        build: Builds the network from the config.
        config: The config, as stored.
        num_bytes: Size of the files with its weights.

    Raises:
        ValueError: It has more weights than its files have bytes, or absurd dimensions.
    """
    _require_small(config, "")
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in build().parameters())
    if weights > num_bytes:
        raise ValueError(
            f"the config declares {weights:.4g} weights, but the files have {num_bytes:.4g} bytes"
        )


def _require_small(value: object, place: str) -> None:
    """Raise on a dimension or a number of layers beyond the budget, anywhere in a config."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _require_small(entry, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for entry in value:
            _require_small(entry, place)
    elif isinstance(value, int):
        limit = budgets.LAYERS if "layers" in place else budgets.DIMENSION
        budgets.require(abs(value), limit, f"`{place}`")
