"""Make a model folder of a published checkpoint: C3's or WorldGym's network and its tokenizer."""  # noqa: N999

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

Rotary = Literal["standard", "pixel", "legacy"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Which checkpoint, what it was trained on, where to."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A .pt or .safetensors file with the network's weights, or the folder of a C3 run."""
    tokenizer: str
    """Its autoencoder: a folder, or a name on the Hugging Face hub, as in docs/tokenizers.md."""
    out: Path
    """Model folder to write: a new or empty one."""
    actions: Literal["worldgym", "bridge", "canonical"]
    """What its actions mean. "worldgym": 10 scaled numbers, gripper -1 = open; "bridge": metres,
    Euler angles, gripper 1 = open, as Bridge stores them; "canonical": as this project has them."""
    rate_hz: float = 5.0
    """Frames and actions per second that it was trained on, in Hz."""
    camera: str = "image"
    """Name of the camera that it was trained on, in your data."""
    heads: int | None = None
    """Attention heads; None: as the config.yaml beside the checkpoint says, else 16."""
    window: int | None = None
    """Most frames the network sees at once; None: as config.yaml says, else 10 with a confidence
    head and 20 without."""
    height: int | None = None
    """Height of a frame in latent positions; None: as config.yaml says, else 32."""
    width: int | None = None
    """Width of a frame in latent positions; None: as config.yaml says, else 32."""
    spatial_rotary: Rotary = "standard"
    """Rotary positions within a frame; "legacy": WorldGym's first release."""
    temporal_rotary: Rotary = "standard"
    """Rotary positions in time."""


def run(command: Command) -> int:
    """Read network and tokenizer, write the folder, and say what is in it."""
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
            f"`--actions {command.actions}` are rows of {spec.dim} numbers, the checkpoint was "
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
