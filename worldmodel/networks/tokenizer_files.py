"""Files of a tokenizer: finding, downloading and reading them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.networks.autoencoders import kind_of

WHITENING = "whitening.json"
HUB_NAME = re.compile(r"(\w[\w.-]*/[\w.-]+)((?:/[\w.-]+)*)")
"""`org/name`, optionally followed by subfolders."""


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
    from safetensors import SafetensorError

    try:
        config = diffusers.AutoencoderDC.load_config(folder)
        kind = config.get("_class_name") if isinstance(config, dict) else None
        kind_of(kind)
        autoencoder, report = getattr(diffusers, str(kind)).from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"its weights lack {min(report['missing_keys'])}.")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
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
        stored = json.loads(file.read_text(encoding="utf-8"))
        mean, std = (torch.tensor(stored[name], dtype=torch.float32) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} must hold the lists `mean` and `std`.") from error
    channels = autoencoder.config[kind.channels]
    if mean.shape != (channels,) or std.shape != (channels,) or not (std > 0).all():
        raise ValueError(
            f"{str(file)!r} must hold {channels} means and positive standard deviations, "
            f"got {stored['mean']} and {stored['std']}."
        )
    return mean, std
