"""Files of C3 and WorldGym checkpoints: state dict, config.yaml, and what is known of public files.

Nothing in a file is executed, and no size in it is believed: memory is taken only for bytes that
the file holds.
"""

from __future__ import annotations

import logging
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldmodel import budgets
from worldmodel.structured_files import Positive, checked, read_yaml

LOG = logging.getLogger(__name__)
FILE = re.compile(r"ckpt_\d+\.pt")
"""File names of checkpoints in the folder of a C3 run."""
STRIDE = 8
"""Pixels per latent position of all tokenizers these networks were trained on."""
TIMESTEPS = 1000
"""Noise levels of the training of all these networks."""
UNREADABLE = (
    BadZipFile, EOFError, LookupError, RuntimeError, SafetensorError, ValueError,
    pickle.UnpicklingError, struct.error,
)  # fmt: skip
"""Errors of `torch.load` and safetensors for corrupt files and for pickles with code."""
WRAPPERS = ("ema", "model", "state_dict", "model_state_dict")
"""Keys under which a checkpoint holds its weights; the average of the weights comes first."""


@dataclass(frozen=True, kw_only=True)
class PublicFile:
    """Settings of a public checkpoint that its weights do not tell."""

    spatial_rotary: str = "standard"
    temporal_rotary: str = "standard"
    objective: str = "ddpm"
    guidance: float = 1.0


C3_SETTINGS = PublicFile()
"""Settings of all networks that C3's code trains."""
PUBLIC_FILES = {
    "bridge_v2_ckpt.pt": PublicFile(spatial_rotary="pixel"),
    "200k_20frame_cfg_bridgev2_ckpt.pt": PublicFile(guidance=3.0),
    "mixed_openx_9robots_20frames_0p1actiondropout_580ksteps.pt": PublicFile(guidance=3.0),
}
"""WorldGym's public checkpoints, by file name (github.com/world-model-eval/world-model-eval)."""
PUBLIC_SHAPE = {"channels": 16, "patch": 2, "dim": 1024, "layers": 16, "action_dim": 10}
"""Shape of all of them; a file of another shape has the name by chance."""


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of the config.yaml of a training run that matter to its network."""

    input_h: Positive | None = None
    input_w: Positive | None = None
    n_frames: Positive | None = None
    window_len: Positive | None = None
    frame_skip: Positive | None = None
    action_dim: Positive | None = None
    patch_size: Positive | None = None
    model_dim: Positive | None = None
    layers: Positive | None = None
    heads: Positive | None = None
    timesteps: Positive | None = None
    sampling_timesteps: Positive | None = None
    horizon: Positive | None = None
    vae_type: str | None = None
    use_ema: bool | None = None
    enable_confidence_prediction: bool | None = None
    objective: str | None = None
    cfg: float | None = None

    @property
    def shape(self) -> dict[str, int]:
        """Config fields that weights do not determine, as far as the run sets them."""
        found = {
            "heads": self.heads,
            "window": self.window_len or self.n_frames,
            "height": None if self.input_h is None else self.input_h // STRIDE,
            "width": None if self.input_w is None else self.input_w // STRIDE,
        }
        return {name: value for name, value in found.items() if value is not None}


TRAINING_ONLY = {
    "action_dropout_prob", "batch_size", "checkpoint_dir", "conf_err_threshold", "dataset_dir",
    "dataset_paths", "ema_decay", "log_every", "log_sample_indices", "lr", "max_train_steps",
    "num_workers", "ref_latent_dir", "save_best_val_ckpt", "save_iter", "seed", "subset_names",
    "validate_every", "wandb_project", "wandb_run_name",
}  # fmt: skip
"""Known keys of a config.yaml that do not change how the network is used."""


def newest_checkpoint(path: Path) -> Path:
    """Path of the checkpoint file: `path`, or the newest checkpoint in the folder `path`."""
    if path.is_file():
        return path
    checkpoints = [file for file in path.glob("ckpt_*.pt") if FILE.fullmatch(file.name)]
    if not checkpoints:
        raise ValueError(
            f"No checkpoint at {str(path)!r}: give a .pt or .safetensors file, or a folder with "
            "ckpt_*.pt files."
        )
    return max(checkpoints, key=lambda file: int(file.stem.removeprefix("ckpt_")))


def read_run_config(checkpoint: Path) -> RunConfig:
    """Settings in the config.yaml beside a checkpoint; all unset without that file.

    Raises:
        ValueError: It cannot be read, or it asks for what is not supported here.
    """
    file = checkpoint.parent / "config.yaml"
    if not file.is_file():
        return RunConfig()
    stored = read_yaml(file, dict)
    config = checked(stored, RunConfig, str(file), "correct it")
    unknown = sorted(stored.keys() - TRAINING_ONLY - set(RunConfig.__struct_fields__))
    if unknown:
        LOG.warning("note: %s: unknown keys are ignored: %s.", file, ", ".join(unknown))
    unsupported = {
        "timesteps": (config.timesteps, TIMESTEPS, "the noise schedule is fixed"),
        "horizon": (config.horizon, 1, "frames are sampled one by one"),
        "frame_skip": (config.frame_skip, 1, "actions between the kept frames were dropped"),
        "vae_type": (config.vae_type and config.vae_type.lower(), "sd", "one latent per frame"),
    }  # fmt: skip
    for key, (value, supported, reason) in unsupported.items():
        if value not in (None, supported):
            raise ValueError(
                f"{file}: `{key}` must be {supported} ({reason}), got {value}; such checkpoints "
                "are not supported."
            )
    return config


def check_run_config(config: RunConfig, shape: Mapping[str, int], file: Path) -> None:
    """Raise if the config.yaml beside a checkpoint describes other weights."""
    stated = {
        "action_dim": (config.action_dim, shape["action_dim"]),
        "patch_size": (config.patch_size, shape["patch"]),
        "model_dim": (config.model_dim, shape["dim"]),
        "layers": (config.layers, shape["layers"]),
        "enable_confidence_prediction": (
            config.enable_confidence_prediction, shape["confidence_layers"] > 0,
        ),
    }  # fmt: skip
    for key, (value, found) in stated.items():
        if value not in (None, found):
            raise ValueError(
                f"{file.parent / 'config.yaml'}: `{key}` is {value}, but the weights in "
                f"{file.name} have {found}; the two do not belong together."
            )


def read_state(file: Path, *, use_ema: bool = True) -> dict[str, Tensor]:
    """Read the state dict in a file without running any code in it.

    Args:
        file: State dict, at the top level or under one of `WRAPPERS`. Prefixes of its names
            ("module.", "_orig_mod.", "model.") are removed.
        use_ema: Whether the average of the weights takes precedence over the weights.

    Raises:
        ValueError: It holds no state dict, code, or tensors larger than the file.
    """
    try:
        if file.suffix == ".safetensors":
            stored: Any = load_file(file)
        else:
            stored = torch_content(file)
    except UNREADABLE as error:
        raise ValueError(
            f"{str(file)!r} cannot be read as weights alone: it is corrupt or holds more than "
            "tensors. Save the network's state_dict() with torch.save and pass that file."
        ) from error
    wrappers = WRAPPERS if use_ema else WRAPPERS[1:]
    while isinstance(stored, Mapping):
        inner = next((stored[name] for name in wrappers if name in stored), None)
        if not isinstance(inner, Mapping):
            break
        stored = inner
    if not isinstance(stored, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in stored.items()
    ):
        raise ValueError(f"{str(file)!r} must hold a state dict, got a {type(stored).__name__}.")
    check_sizes(stored, file)
    return without_prefixes(stored, file)


def torch_content(file: Path) -> Any:
    """Content of a file of `torch.save`, with its tensors mapped from the file.

    Mapped, an optimizer state next to the weights is not read, and a tensor cannot be larger than
    the file. Compressed archives, which `torch.save` does not write, are refused: they can expand.
    """
    is_archive = is_zipfile(file)
    if is_archive:
        with ZipFile(file) as archive:
            if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
                raise ValueError("the archive is compressed")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)


def check_sizes(state: Mapping[str, Tensor], file: Path) -> None:
    """Raise if tensors are sparse, not of numbers, or larger than what the file holds of them.

    A few bytes can describe a tensor of any size that repeats one number.
    """
    held = {}
    for name, value in state.items():
        if value.layout != torch.strided or not value.is_floating_point():
            raise ValueError(
                f"{str(file)!r}: {name} must be a dense tensor of floats, got {value.dtype} "
                f"({value.layout})."
            )
        storage, claimed = value.untyped_storage(), value.numel() * value.element_size()
        held[storage.data_ptr()] = storage.nbytes()
        if claimed > storage.nbytes():
            raise ValueError(
                f"{str(file)!r}: {name} claims {claimed:.4g} bytes, but the file holds "
                f"{storage.nbytes()} of it; save the network's state_dict() again."
            )
    budgets.require(sum(held.values()), budgets.ARRAY_BYTES, f"{str(file)!r} in bytes of weights")


def without_prefixes(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """State dict without the prefixes of torch.compile, DistributedDataParallel and wrappers."""
    renamed = {
        ".".join(part for part in name.split(".") if part != "_orig_mod"): value
        for name, value in state.items()
    }
    prefixes = {name.removesuffix("x_proj.weight") for name in renamed if is_input(name)}
    if len(renamed) < len(state) or len(prefixes) > 1:
        places = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise ValueError(
            f"{str(file)!r} holds several networks (under {places}); save the state_dict() of one."
        )
    prefix = next(iter(prefixes), "")
    return {name.removeprefix(prefix): value for name, value in renamed.items()}


def is_input(name: str) -> bool:
    """Whether a parameter is the weight of a network's first layer.

    >>> is_input("module.x_proj.weight"), is_input("max_proj.weight")
    (True, False)
    """
    return name == "x_proj.weight" or name.endswith(".x_proj.weight")


def public_file(file: Path, shape: Mapping[str, int]) -> PublicFile | None:
    """What is known of a checkpoint by its name and shape; None: nothing.

    C3's code trains all its networks, those with a confidence head, in one way.
    """
    if shape["confidence_layers"]:
        return C3_SETTINGS
    if all(shape[name] == size for name, size in PUBLIC_SHAPE.items()):
        return PUBLIC_FILES.get(file.name)
    return None
