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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from worldmodel.c3_files import (
    PUBLIC_FILES,
    PublicFile,
    check_run_config,
    newest_checkpoint,
    public_file,
    read_run_config,
    read_state,
)
from worldmodel.datasets.actions import ActionSpec
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.c3 import PUBLISHED, C3Config, C3Network
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.networks.sampler import Sampling
from worldmodel.networks.tokenizer import Tokenizer


@dataclass(frozen=True)
class ImportedC3:
    """A C3 or WorldGym network and the sampler it was published with."""

    network: C3Network
    """In eval mode."""
    sampling: Sampling
    """Steps of the run's config.yaml, and the guidance of the public file."""


def load_c3(path: str | Path, **settings: Any) -> C3Network:
    """Load a C3 or WorldGym network from its checkpoint; the arguments are those of `import_c3`."""
    return import_c3(path, **settings).network


def import_c3(  # noqa: PLR0913 - all settings of a network, keyword-only
    path: str | Path,
    *,
    heads: int | None = None,
    window: int | None = None,
    height: int | None = None,
    width: int | None = None,
    spatial_rotary: str | None = None,
    temporal_rotary: str | None = None,
    objective: str | None = None,
) -> ImportedC3:
    """Load a C3 or WorldGym network from its checkpoint, and its sampler.

    Args:
        path: A `.pt` or `.safetensors` file with a state dict, at the top level or under "ema"
            (preferred), "model" or "state_dict"; or the folder of a C3 run, to load its newest
            `ckpt_*.pt`.
        heads: Attention heads. Default: from the config.yaml next to the file, else 16, as
            published.
        window: Maximum number of frames in the window. Default: from the config.yaml, else 10 with
            a confidence head (C3) and 20 without (WorldGym).
        height: Latent height in positions; default: from the config.yaml, else 32.
        width: Latent width, likewise.
        spatial_rotary: Rotary position embedding within a frame, see `C3Config`. Default: that of
            the public file, if the file is one; "standard" with a confidence head.
        temporal_rotary: Rotary position embedding in time, same default.
        objective: Training objective, likewise; "ddpm" with a confidence head.

    Raises:
        ValueError: The file cannot be read without running code from it, its weights are not those
            of a C3 or WorldGym network, or nothing tells a setting that has no default.
    """
    file = newest_checkpoint(Path(path))
    run = read_run_config(file)
    state = read_state(file, use_ema=run.use_ema is not False)
    shape = shape_of(state, file)
    check_run_config(run, shape, file)
    known = public_file(file, shape)
    given = {"heads": heads, "window": window, "height": height, "width": width}
    untold = {"spatial_rotary": spatial_rotary, "temporal_rotary": temporal_rotary}
    untold |= {"objective": objective or run.objective}
    fields: dict[str, Any] = shape | published(state) | run.shape
    fields |= {name: value for name, value in given.items() if value is not None}
    fields |= settle(untold, known, file)
    network = build(C3Config(**fields), state, file)
    num_steps = run.sampling_timesteps or PUBLISHED.num_steps
    guidance = run.cfg or (known.guidance if known else 1.0)
    return ImportedC3(network, replace(PUBLISHED, num_steps=num_steps, guidance=guidance))


def build(config: C3Config, state: Mapping[str, Tensor], file: Path) -> C3Network:
    """Network with the weights of a state dict, in eval mode."""
    with torch.device("meta"):  # shapes are compared before memory is taken
        expected = C3Network(config)
    weights = converted(expected, state, file)
    network = C3Network(config)
    network.load_state_dict(weights)
    return network.eval()


def settle(
    untold: Mapping[str, str | None], known: PublicFile | None, file: Path
) -> dict[str, str]:
    """Settings that weights do not tell: as given, else as known of the file.

    Raises:
        ValueError: One is neither given nor known: a wrong one gives wrong pictures and no error.
    """
    missing = [name for name, value in untold.items() if value is None]
    if missing and known is None:
        options = " and ".join(f"`{name}`" for name in missing)
        raise ValueError(
            f"Nothing in {str(file)!r} tells {options} of this WorldGym network, and a wrong one "
            "gives wrong pictures without an error: pass them (docs/reference.md lists what public "
            f"files need), or keep the name of a public file ({', '.join(PUBLIC_FILES)})."
        )
    return {name: value or getattr(known, name) for name, value in untold.items()}


def as_world_model(
    network: C3Network,
    tokenizer: Tokenizer,
    *,
    action_spec: ActionSpec,
    camera: str = "image",
    sampling: Sampling = PUBLISHED,
    pairing: str = "next",
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
        sampling: Its sampler, from `import_c3`.
        pairing: See `ModelConfig`.
        source: Origin of both, recorded in the provenance.

    Raises:
        ValueError: The tokenizer's latents have another shape, or the actions have another width.
    """
    whiten_as_published(tokenizer)
    shape, stride = network.config, tokenizer.stride
    stages = ["tokenizer", "dynamics", *(["confidence"] if network.has_confidence else [])]
    config = ModelConfig(
        dynamics=shape,
        confidence=ConfidenceConfig(),
        image_size=(shape.height * stride, shape.width * stride),
        cameras=(camera,),
        action_spec=action_spec,
        num_steps=sampling.num_steps,
        sampler=sampling.method,
        guidance=sampling.guidance,
        pairing=pairing,
        trained_horizon=shape.window - 1,
        provenance={"imported": source, "stages": stages},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(config, tokenizer)
    model.dynamics = network
    return model.eval()


def whiten_as_published(tokenizer: Tokenizer) -> None:
    """Set the whitening to the scaling factor without the shift."""
    published = {**tokenizer.autoencoder.config, "shift_factor": None}
    mean, std = tokenizer.kind.whitening(published)
    tokenizer.mean.copy_(mean)
    tokenizer.std.copy_(std)


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
