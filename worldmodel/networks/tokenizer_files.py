"""Where a tokenizer's files are, and what is in them."""

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
"""`org/name` and, perhaps, the subfolders after it."""


def find_folder(source: str | Path) -> Path:
    """The folder of an autoencoder: `source` itself, or where the hub's files were put.

    Raises:
        ValueError: no such folder, or the hub has none of that name or cannot be asked.
    """
    if Path(source).is_dir():
        return check_folder(Path(source), source)
    name = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if name is None:
        raise ValueError(f"No tokenizer in {str(source)!r}: there is no such folder.")
    repository, subfolder = name.groups()
    return check_folder(download(repository, subfolder.lstrip("/")), source)


def check_folder(folder: Path, source: str | Path) -> Path:
    """Refuse a folder without a config, such as that of a whole pipeline."""
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"No autoencoder in {str(source)!r}: it has no config.json. Of a whole pipeline, name "
            f"the autoencoder's own folder, such as '{source}/vae'."
        )
    return folder


def download(repository: str, subfolder: str) -> Path:
    """Fetch one autoencoder from the hub, or from its cache; no other file of the repository."""
    from huggingface_hub import snapshot_download

    weights = "diffusion_pytorch_model"
    files = ["config.json", WHITENING, f"{weights}.safetensors"]
    files += [f"{weights}-*.safetensors", f"{weights}.safetensors.index.json"]
    prefix = f"{subfolder}/" if subfolder else ""
    try:
        snapshot = snapshot_download(repository, allow_patterns=[prefix + name for name in files])
    except (OSError, ValueError) as error:  # its own errors are kinds of these
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"No tokenizer in {repository!r}: there is no such folder, and the hub gave none "
            f"({reason})."
        ) from error
    return Path(snapshot) / subfolder


def load_autoencoder(folder: Path) -> Any:
    """A diffusers autoencoder, every weight of it from there."""
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
    """Mean and standard deviation per channel as `Tokenizer.save` wrote them, else its own.

    Raises:
        ValueError: the file is damaged, or the autoencoder's own statistics make no sense.
    """
    kind, file = kind_of(type(autoencoder).__name__), folder / WHITENING
    if not file.is_file():
        try:
            return kind.whitening(autoencoder.config)
        except ValueError as error:
            raise ValueError(f"No usable autoencoder in {str(folder)!r}: {error}") from error
    try:
        stored = json.loads(file.read_text())
        mean, std = (torch.tensor(stored[name], dtype=torch.float32) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} holds no whitening (lists `mean` and `std`).") from error
    channels = autoencoder.config[kind.channels]
    if mean.shape != (channels,) or std.shape != (channels,) or not (std > 0).all():
        raise ValueError(
            f"{str(file)!r} must hold {channels} means and positive standard deviations, "
            f"got {stored['mean']} and {stored['std']}."
        )
    return mean, std
