"""Files of a tokenizer: finding, downloading and reading them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor

from worldmodel.networks.autoencoders import kind_of
from worldmodel.networks.declared_size import require_declared_size
from worldmodel.structured_files import read_json

WHITENING = "whitening.json"
HUB_NAME = re.compile(r"(\w[\w.-]*/[\w.-]+)((?:/[\w.-]+)*)")
"""`org/name`, optionally followed by subfolders."""


UNREADABLE = (
    OSError, SafetensorError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError,
    AttributeError, NotImplementedError, AssertionError,
)  # fmt: skip
"""Errors of diffusers for damaged files."""


class Whitening(msgspec.Struct):
    """Content of whitening.json: mean and standard deviation per channel."""

    mean: list[float]
    std: list[float]


def find_folder(source: str | Path) -> Path:
    """Folder of an autoencoder: `source` itself, or the local copy of a hub repository.

    Raises:
        ValueError: The folder does not exist, or the download from the hub fails.
    """
    if Path(source).is_dir():
        return check_folder(Path(source), source)
    name = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if name is None:
        raise ValueError(f"No tokenizer in {str(source)!r}: there is no such folder.")
    repository, subfolder = name.groups()
    return check_folder(download(repository, subfolder.lstrip("/")), source)


def check_folder(folder: Path, source: str | Path) -> Path:
    """Raise a ValueError if a folder has no config.json, as the folder of a whole pipeline."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"No autoencoder in {str(source)!r}: it has no config.json. For a whole pipeline, give "
            f"the folder of its autoencoder, for example '{source}/vae'."
        )
    return folder


def download(repository: str, subfolder: str) -> Path:
    """Download the files of one autoencoder from the hub, or take them from the hub's cache."""
    from huggingface_hub import snapshot_download

    weights = "diffusion_pytorch_model"
    files = ["config.json", WHITENING, f"{weights}.safetensors"]
    files += [f"{weights}-*.safetensors", f"{weights}.safetensors.index.json"]
    prefix = f"{subfolder}/" if subfolder else ""
    try:
        snapshot = snapshot_download(repository, allow_patterns=[prefix + name for name in files])
    except (OSError, ValueError) as error:  # base classes of the hub's errors
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"No tokenizer in {repository!r}: there is no such folder, and the download from "
            f"the hub failed ({reason})."
        ) from error
    return Path(snapshot) / subfolder


def load_autoencoder(folder: Path) -> Any:
    """Load a diffusers autoencoder; every weight must be in the folder."""
    import diffusers

    try:
        config = read_json(folder / "config.json", dict)
        name = str(config.get("_class_name"))
        kind_of(name)
        network = getattr(diffusers, name)
        num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        if num_bytes:  # without files, diffusers names those it looked for
            require_declared_size(lambda: network.from_config(config), config, num_bytes)
        autoencoder, report = network.from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"its weights lack {min(report['missing_keys'])}.")
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"No readable diffusers autoencoder in {str(folder)!r}: {reason}"
        ) from error
    return autoencoder


def read_whitening(folder: Path, autoencoder: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, from whitening.json or the autoencoder's config.

    Raises:
        ValueError: The file is corrupt, or the statistics in the config are invalid.
    """
    kind, file = kind_of(type(autoencoder).__name__), folder / WHITENING
    if not file.is_file():
        try:
            return kind.whitening(autoencoder.config)
        except ValueError as error:
            raise ValueError(f"No usable autoencoder in {str(folder)!r}: {error}") from error
    try:
        stored = read_json(file, Whitening)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} must hold the lists `mean` and `std`: {error}") from error
    mean, std = (torch.tensor(numbers) for numbers in (stored.mean, stored.std))
    channels = autoencoder.config[kind.channels]
    if mean.shape != (channels,) or std.shape != (channels,) or not (std > 0).all():
        raise ValueError(
            f"{str(file)!r} must hold {channels} means and positive standard deviations, "
            f"got {stored.mean} and {stored.std}."
        )
    return mean, std
