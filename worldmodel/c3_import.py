"""Import of C3 and WorldGym checkpoints: converts their state dicts to our modules.

Their names -> our names, and changes of layout:

- `x_proj` -> `embed`: a convolution with stride equal to its kernel is a linear map of patches
- `timestep_mlp`, `err_thresh_mlp`, `action_embedder` -> `level`, `threshold`, `action`
- `blocks.N.{s,t}_block` -> `stack.{spatial,temporal}.N`; `conf_blocks.N...` -> `confidence...`
- `attn.qkv_proj`, `attn.out_proj` -> `attention.qkv`, `attention.out`
- `ffwd`, `adaLN_modulation.1` -> `mlp`, `modulation`
- `final_layer`, `final_layer_conf_head` -> `stack`, `confidence`, their `out` and `modulation`:
  patch order (row, column, channel) becomes (channel, row, column)
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldmodel.datasets.actions import ActionSpec
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.c3 import PUBLISHED, C3Config, C3Network
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.networks.tokenizer import Tokenizer

FILE = re.compile(r"ckpt_\d+\.pt")
"""File names of checkpoints in the folder of a C3 run."""
STRIDE = 8
"""Pixels per latent position of all tokenizers these networks were trained on."""
UNREADABLE = (
    EOFError, LookupError, RuntimeError, SafetensorError, ValueError, pickle.UnpicklingError,
    struct.error,
)  # fmt: skip
"""Errors of `torch.load` and safetensors for corrupt files and for pickles with code."""
SETTINGS = {"heads": "heads", "window": "n_frames", "height": "input_h", "width": "input_w"}
"""Config field missing in a state dict -> its name in the config.yaml of a C3 run."""


def load_c3(
    path: str | Path,
    *,
    heads: int | None = None,
    window: int | None = None,
    height: int | None = None,
    width: int | None = None,
    spatial_rotary: str = "standard",
    temporal_rotary: str = "standard",
) -> C3Network:
    """Load a C3 or WorldGym network from its checkpoint, in eval mode.

    Args:
        path: A `.pt` or `.safetensors` file with a state dict, at the top level or under "ema"
            (preferred) or "model"; or the folder of a C3 run, to load its newest `ckpt_*.pt`.
        heads: Attention heads. Default: from the config.yaml next to the file, else 16, as
            published.
        window: Maximum number of frames in the window. Default: from the config.yaml, else 10 with
            a confidence head (C3) and 20 without (WorldGym).
        height: Latent height in positions. Default: from the config.yaml, else 32.
        width: Latent width in positions, same default.
        spatial_rotary: Rotary position embedding within a frame, see `C3Config`.
        temporal_rotary: Rotary position embedding in time.

    Raises:
        ValueError: The file cannot be read without running code from it, or its weights are not
            those of a C3 or WorldGym network.
    """
    file = newest_checkpoint(Path(path))
    state = read_state(file)
    settings = read_settings(file.parent / "config.yaml")
    arguments = {"heads": heads, "window": window, "height": height, "width": width}
    settings |= {name: value for name, value in arguments.items() if value is not None}
    fields: dict[str, Any] = shape_of(state, file) | published(state) | settings
    config = C3Config(**fields, spatial_rotary=spatial_rotary, temporal_rotary=temporal_rotary)
    model = C3Network(config)
    model.load_state_dict(converted(model, state, file))
    return model.eval()


def as_world_model(
    network: C3Network,
    tokenizer: Tokenizer,
    *,
    action_spec: ActionSpec,
    camera: str = "image",
    source: str = "",
) -> WorldModel:
    """Build a world model around an imported network, to imagine, calibrate and save.

    Latents are those of the publications: `z * scaling_factor`, without the shift of newer
    autoencoders. A network without a confidence head gets an untrained one of ours; the success
    classifiers are untrained too.

    Args:
        network: Network from `load_c3`.
        tokenizer: Its autoencoder; its whitening is overwritten.
        action_spec: Specification of its actions.
        camera: Name of the camera it was trained on.
        source: Origin of both, recorded in the provenance.

    Raises:
        ValueError: The tokenizer's latents have another shape, or the actions have another width.
    """
    published = {**tokenizer.autoencoder.config, "shift_factor": None}
    mean, std = tokenizer.kind.whitening(published)
    tokenizer.mean.copy_(mean)
    tokenizer.std.copy_(std)
    shape, stride = network.config, tokenizer.stride
    stages = ["tokenizer", "dynamics", *(["confidence"] if network.has_confidence else [])]
    config = ModelConfig(
        dynamics=shape,
        confidence=ConfidenceConfig(),
        image_size=(shape.height * stride, shape.width * stride),
        cameras=(camera,),
        action_spec=action_spec,
        num_steps=PUBLISHED.num_steps,
        sampler=PUBLISHED.method,
        trained_horizon=shape.window - 1,
        provenance={"imported": source, "stages": stages},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(config, tokenizer)
    model.dynamics = network
    return model.eval()


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


def read_state(file: Path) -> dict[str, Tensor]:
    """Read the state dict in a file without running any code in it."""
    try:
        if file.suffix == ".safetensors":
            stored: Any = load_file(file)
        else:
            # Memory-mapped, so that an optimizer state next to the weights is not read.
            stored = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except UNREADABLE as error:
        raise ValueError(
            f"{str(file)!r} cannot be read as weights alone: it is corrupt or holds more than "
            "tensors. Save the network's state_dict() with torch.save and pass that file."
        ) from error
    for name in ("ema", "model"):
        if isinstance(stored, Mapping) and isinstance(stored.get(name), Mapping):
            stored = stored[name]
            break
    if not isinstance(stored, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in stored.items()
    ):
        raise ValueError(f"{str(file)!r} must hold a state dict, got a {type(stored).__name__}.")
    return {name.removeprefix("module."): value for name, value in stored.items()}


def read_settings(file: Path) -> dict[str, int]:
    """Settings of the network's shape in the config.yaml of a C3 run; empty without the file."""
    import yaml

    if not file.is_file():
        return {}
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings = {
            name: int(stored[theirs]) for name, theirs in SETTINGS.items() if stored.get(theirs)
        }
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as a config: {error}.") from error
    sides = [name for name in ("height", "width") if name in settings]
    return settings | {name: settings[name] // STRIDE for name in sides}


def shape_of(state: Mapping[str, Tensor], file: Path) -> dict[str, int]:
    """Config fields determined by the shapes of the weights."""
    for name, axes in (("x_proj.weight", 4), ("action_embedder.weight", 2)):
        if name not in state or state[name].ndim != axes:
            raise ValueError(
                f"{str(file)!r} holds no C3 or WorldGym network: {name} is missing or has the "
                "wrong number of axes."
            )
    dim, channels, patch, _ = state["x_proj.weight"].shape
    return {
        "channels": channels,
        "patch": patch,
        "dim": dim,
        "action_dim": state["action_embedder.weight"].shape[1],
        "layers": count(state, "blocks"),
        "confidence_layers": count(state, "conf_blocks"),
    }


def published(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Published values of the config fields that weights do not determine."""
    window = 10 if count(state, "conf_blocks") else 20
    return {"heads": 16, "window": window, "height": 32, "width": 32}


def count(state: Mapping[str, Tensor], name: str) -> int:
    """Number of modules in the module list `name`.

    >>> count({"blocks.0.a": torch.zeros(1), "blocks.1.a": torch.zeros(1)}, "blocks")
    2
    """
    return len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})


def converted(model: C3Network, state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Convert all weights to our names and layout."""
    unused, ours = set(state), {}
    for name, parameter in model.state_dict().items():
        theirs, change = source_of(name, model.config)
        if theirs not in state:
            raise ValueError(f"{str(file)!r} holds no C3 or WorldGym network: {theirs} is missing.")
        try:
            value = change(state[theirs])
        except (RuntimeError, ValueError):  # sizes that `rearrange` cannot divide
            value = state[theirs].new_empty(0)
        if value.shape != parameter.shape:
            raise ValueError(
                f"{str(file)!r}: {theirs} has shape {tuple(state[theirs].shape)}, which does not "
                "fit the other weights."
            )
        ours[name] = value.float()
        unused.discard(theirs)
    if unused:
        raise ValueError(f"{str(file)!r} holds weights of another network, such as {min(unused)}.")
    return ours


def source_of(name: str, config: C3Config) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Published name of our parameter, and the conversion of its tensor."""
    end = name.rpartition(".")[2]
    plain = {"level": "timestep_mlp", "threshold": "err_thresh_mlp", "action": "action_embedder"}
    first, _, rest = name.partition(".")
    if first == "embed":
        return f"x_proj.{end}", (lambda w: w.flatten(1)) if end == "weight" else torch.clone
    if first in plain:
        return f"{plain[first]}.{rest}", torch.clone
    blocks = "blocks" if first == "stack" else "conf_blocks"
    final = "final_layer" if first == "stack" else "final_layer_conf_head"
    if rest.startswith("modulation."):
        return f"{final}.adaLN_modulation.1.{end}", torch.clone
    if rest.startswith("out."):
        p = config.patch
        return f"{final}.linear.{end}", lambda w: rearrange(
            w, "(p q c) ... -> (c p q) ...", p=p, q=p
        )
    kind, index, part = rest.split(".", 2)
    names = {"attention.qkv": "attn.qkv_proj", "attention.out": "attn.out_proj"}
    names |= {"mlp.0": "ffwd.0", "mlp.2": "ffwd.2", "modulation": "adaLN_modulation.1"}
    inner = names[part.rpartition(".")[0]]
    theirs = f"{blocks}.{index}.{'s' if kind == 'spatial' else 't'}_block.{inner}.{end}"
    return theirs, torch.clone
