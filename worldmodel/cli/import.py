"""Convert a published C3 or WorldGym checkpoint and its tokenizer to a model folder."""  # noqa: N999

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

Rotary = Literal["standard", "pixel", "legacy"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel import`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """Weights of the network (.pt or .safetensors), or the folder of a C3 run."""
    tokenizer: str
    """Its autoencoder: a folder, or a name on the Hugging Face hub (see docs/tokenizers.md)."""
    out: Path
    """New or empty model folder to write."""
    actions: Literal["worldgym", "bridge", "canonical"]
    """Meaning of its actions. "worldgym": 10 scaled numbers, gripper -1 = open; "bridge": metres,
    Euler angles, gripper 1 = open, as stored in Bridge; "canonical": the form of this project."""
    rate_hz: float = 5.0
    """Rate of frames and actions in its training data, in Hz."""
    camera: str = "image"
    """Name that your data give to the camera that it was trained on."""
    heads: int | None = None
    """Attention heads; None: from the config.yaml beside the checkpoint, or 16."""
    window: int | None = None
    """Context window in frames; None: from config.yaml, or 10 with a confidence head and 20
    without."""
    height: int | None = None
    """Height of a frame in latent positions; None: from config.yaml, or 32."""
    width: int | None = None
    """Width of a frame in latent positions; None: from config.yaml, or 32."""
    spatial_rotary: Rotary = "standard"
    """Rotary embedding of positions in a frame; "legacy": first release of WorldGym."""
    temporal_rotary: Rotary = "standard"
    """Rotary embedding of time."""


def run(command: Command) -> int:
    """Load network and tokenizer, write the model folder and print a summary."""
    from worldmodel.c3_import import as_world_model, load_c3
    from worldmodel.checkpoint import check_new
    from worldmodel.datasets.actions import CANONICAL
    from worldmodel.datasets.readers import mp4_npz, rlds
    from worldmodel.networks.tokenizer import Tokenizer

    check_new(command.out)
    if command.rate_hz <= 0:
        raise ValueError(f"`--rate-hz` must be positive, got {command.rate_hz}.")
    spec = {"worldgym": mp4_npz.SPEC, "bridge": rlds.SPEC, "canonical": CANONICAL}[command.actions]
    network = load_c3(
        command.checkpoint,
        heads=command.heads,
        window=command.window,
        height=command.height,
        width=command.width,
        spatial_rotary=command.spatial_rotary,
        temporal_rotary=command.temporal_rotary,
    )
    if spec.dim != (width := network.config.action_dim):
        raise ValueError(
            f"`--actions {command.actions}` are rows of {spec.dim} numbers, but the checkpoint was "
            f"trained on rows of {width}."
        )
    model = as_world_model(
        network,
        Tokenizer.from_pretrained(command.tokenizer),
        action_spec=replace(spec, rate_hz=command.rate_hz),
        camera=command.camera,
        source=f"{command.checkpoint} with {command.tokenizer}",
    )
    model.save(command.out)
    shape, (height, width) = network.config, model.config.image_size
    kind = "C3, states its confidence" if model.states_confidence else "WorldGym, no confidence"
    print(
        f"{command.out}: {kind}; {sum(p.numel() for p in network.parameters()):,} parameters, "
        f"{shape.heads} heads, window of {shape.window} frames, frames of {height} x {width} pixels"
    )
    return 0
