"""Options of every command that runs a model: its device and precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where and how the networks run."""

    device: str = "auto"
    """Device of the networks: "cpu", "cuda", "cuda:1", "mps"; "auto" takes a GPU if there is one.
    Monitors run on the CPU, and random numbers do not depend on the device."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of tokenizer and dynamics. Confidence heads, classifiers and all figures are
    float32. Calibrate with the precision that you run with."""

    @property
    def placement(self) -> dict[str, Any]:
        """Options of `WorldModel.load`.

        Raises:
            ValueError: This machine has no such device.
        """
        from worldmodel.precision import DTYPES, choose_device

        return {"device": choose_device(self.device), "dtype": DTYPES[self.dtype]}


Networks = tyro.conf.OmitArgPrefixes[DeviceOptions]
"""Type of a command's field `networks`: its options are `--device` and `--dtype`."""
AUTOMATIC = DeviceOptions()
