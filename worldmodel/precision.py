"""Device and numerical precision of inference, chosen by name.

Random numbers are drawn on the CPU and moved, so a device changes results only by rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

DEVICES = "auto, cpu, cuda, cuda:N or mps"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name -> precision of a network's matrix products and convolutions."""


class PrecisionModule(nn.Module):
    """Network whose inference may run in half precision: autocast, with weights in float32."""

    compute_dtype = torch.float32
    """Precision of matrix products and convolutions outside training."""

    def computing(self) -> AbstractContextManager[object]:
        """Context in which the network runs; for float32, whatever the caller has set."""
        if self.compute_dtype == torch.float32:
            return nullcontext()
        device = next(self.parameters()).device.type
        return torch.autocast(device, self.compute_dtype)

    def computed(self, value: Tensor) -> Tensor:
        """Output of the network: single precision, unless the caller has set another."""
        return value if self.compute_dtype == torch.float32 else value.float()


def choose_device(name: str) -> torch.device:
    """Device of a name; "auto" is the first CUDA device, else MPS, else the CPU.

    Raises:
        ValueError: This machine has no such device.
    """
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(
            "mps" if found == "cpu" and torch.backends.mps.is_available() else found
        )
    kind, colon, number = name.partition(":")
    if name != "cpu" and name != "mps" and (kind != "cuda" or (colon and not number.isdecimal())):
        raise ValueError(f"`--device` must be {DEVICES}, got {name!r}.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("`--device mps` does not exist: PyTorch finds no Apple GPU; use cpu.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(number or 0):
            has = "no CUDA device" if not count else f"{count}, counted from cuda:0"
            raise ValueError(f"`--device {name}` does not exist: PyTorch finds {has}; use cpu.")
    return torch.device(name)


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a precision.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return next(name for name, kind in DTYPES.items() if kind == dtype)
