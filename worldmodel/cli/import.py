"""Convert a published C3 or WorldGym checkpoint and its tokenizer to a model folder."""  # noqa: N999

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from worldmodel.model import WorldModel

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
    pairing: Literal["next", "same"] = "next"
    """Action that the network sees with a frame: "next", the one that led to it (WorldGym's
    rollouts); "same", the one stored in the frame's own row (training of both, C3's rollouts)."""
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
    spatial_rotary: Rotary | None = None
    """Rotary embedding of positions in a frame; "legacy": first release of WorldGym. None: that of
    the public file of this name, "standard" with a confidence head; else needed."""
    temporal_rotary: Rotary | None = None
    """Rotary embedding of time; None: as above."""
    objective: Literal["ddpm", "flow_matching"] | None = None
    """Objective of its training; None: as above."""
    guidance: float | None = None
    """Guidance weight of its rollouts (`cfg`), 1: none; None: that of the public file, or 1."""


def run(command: Command) -> int:
    """Load network and tokenizer, write the model folder and print a summary."""
    from worldmodel.c3_import import as_world_model, import_c3
    from worldmodel.checkpoint import check_new
    from worldmodel.datasets.actions import CANONICAL
    from worldmodel.datasets.readers import mp4_npz, rlds
    from worldmodel.networks.tokenizer import Tokenizer

    check_new(command.out)
    if command.rate_hz <= 0:
        raise ValueError(f"`--rate-hz` must be positive, got {command.rate_hz}.")
    spec = {"worldgym": mp4_npz.SPEC, "bridge": rlds.SPEC, "canonical": CANONICAL}[command.actions]
    imported = import_c3(
        command.checkpoint,
        heads=command.heads,
        window=command.window,
        height=command.height,
        width=command.width,
        spatial_rotary=command.spatial_rotary,
        temporal_rotary=command.temporal_rotary,
        objective=command.objective,
    )
    network, sampling = imported.network, imported.sampling
    if command.guidance is not None:
        sampling = replace(sampling, guidance=command.guidance)
    if sampling.guidance != 1 and network.has_confidence:
        raise ValueError(
            f"`--guidance` must be 1 for a network with a confidence head, got {sampling.guidance}."
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
        sampling=sampling,
        pairing=command.pairing,
        source=f"{command.checkpoint} with {command.tokenizer}",
    )
    model.save(command.out)
    print(f"{command.out}: {summary(model)}")
    return 0


def summary(model: WorldModel) -> str:
    """Settings of an imported model in words, as far as a wrong one would go unnoticed."""
    from worldmodel.networks.c3 import C3Config

    shape, config = model.config.dynamics, model.config
    assert isinstance(shape, C3Config), "imported models have such a network"
    height, width = config.image_size
    kind = "C3, states its confidence" if model.states_confidence else "WorldGym, no confidence"
    return (
        f"{kind}; {sum(p.numel() for p in model.dynamics.parameters()):,} parameters, "
        f"{shape.heads} heads, window of {shape.window} frames, frames of {height} x {width} "
        f"pixels, rotary positions {shape.spatial_rotary} in space and {shape.temporal_rotary} in "
        f"time, {shape.objective} in {config.num_steps} steps, guidance {config.guidance:g}, "
        f'actions paired with the "{config.pairing}" frame'
    )
