"""Training presets: sizes and schedules of every stage. A new experiment is a new preset."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace

from worldmodel.networks.compositor import CompositorConfig
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.networks.dynamics import DynamicsConfig
from worldmodel.networks.recurrent import RecurrentConfig
from worldmodel.networks.tokenizer import TokenizerConfig
from worldmodel.training.config import Computing, LoopConfig
from worldmodel.training.tokenizer_objective import TokenizerLoss

COMPOSITOR_LOOP = LoopConfig(steps=1000, batch_size=8, learning_rate=3e-3, average_decay=0.99)
"""The compositor is as small for every model."""
PICTURE_LOOP = LoopConfig(steps=2500, batch_size=16, learning_rate=3e-3, average_decay=0.99)
"""So is the confidence in pictures; an item is a picture with all its patches."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes and schedules of every stage."""

    image_height: int
    """Height in pixels that frames are resized to; the width follows the data's aspect ratio."""
    cameras: int | tuple[str, ...] = 1
    """Number of cameras, the first ones of the dataset; or their names."""
    frame_stride: int = 1
    """The model sees every `frame_stride`-th frame, at a rate lower by that factor."""
    action_chunk: str = "sum"
    """Combination of the actions between two frames: "sum" composes them into one (pose changes
    only), "encode" concatenates them."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenizer_loss: TokenizerLoss = field(default_factory=TokenizerLoss)
    dynamics: DynamicsConfig | RecurrentConfig = field(default_factory=DynamicsConfig)
    """Shape of the network; latent size, channels and views come from data and tokenizer."""
    confidence: ConfidenceConfig = field(default_factory=ConfidenceConfig)
    tokenizer_loop: LoopConfig
    dynamics_loop: LoopConfig
    rollout_loop: LoopConfig
    """Second phase of the dynamics training, with the model's own predictions as context."""
    confidence_loop: LoopConfig
    """Its curriculum may start with clips of 2 frames, that is one-step predictions."""
    judge_loop: LoopConfig
    compositor: CompositorConfig = field(default_factory=CompositorConfig)
    compositor_loop: LoopConfig = COMPOSITOR_LOOP
    picture_loop: LoopConfig = PICTURE_LOOP
    image_share: float = 0.0
    """Share of clips that the dynamics sees as independent images. Above 0, episodes shorter than a
    clip are used too."""
    clip_frames: int = 12
    """Frames of a training clip of the dynamics."""
    rollout_passes: int = 4
    """Longest rollout, in frames, used as context in the second phase."""
    horizon: int = 16
    """Longest training horizon of the confidence head, in frames."""
    longest_start: int = 6
    """Maximum number of real frames that a training rollout of the head starts from, at least 1."""
    corrupted_copies: int = 1
    """Corrupted copies of every episode in the training data of the confidence head."""
    pair_stride: int = 6
    """Frames between the two frames of a tokenizer training item."""
    action_dropout: float = 0.1
    """Share of frames that the dynamics denoises without their action, needed for guidance."""
    num_steps: int = 1
    """Sampler steps per frame."""
    computing: Computing = field(default_factory=Computing)
    """Precision, activation checkpointing and compilation; the last two apply to the dynamics."""
    shares: tuple[float, float] = (0.65, 0.15)
    """Shares of the episodes for tokenizer and dynamics, and for the confidence head; the rest is
    held out for calibration."""

    def __post_init__(self) -> None:
        names = () if isinstance(self.cameras, int) else self.cameras
        if self.num_cameras < 1 or len(set(names)) < len(names):
            raise ValueError(
                f"`cameras` must be at least 1, and different ones, got {self.cameras!r}."
            )
        if self.frame_stride < 1:
            raise ValueError(f"`frame_stride` must be at least 1, got {self.frame_stride}.")
        if self.action_chunk not in ("sum", "encode"):
            raise ValueError(
                f'`action_chunk` must be "sum" or "encode", got {self.action_chunk!r}.'
            )
        longest = {
            "tokenizer_loop": 0, "dynamics_loop": self.clip_frames,
            "rollout_loop": self.clip_frames,
            "compositor_loop": 0, "picture_loop": 0, "judge_loop": 0,
            "confidence_loop": self.horizon + self.longest_start,
        }  # fmt: skip
        for name, limit in longest.items():
            curriculum = getattr(self, name).curriculum
            if any(num_frames > limit for _, num_frames in curriculum):
                raise ValueError(
                    f"`curriculum` of `{name}` may ask for clips of at most {limit} frames, "
                    f"got {curriculum}."
                )
        if self.corrupted_copies < 0:
            raise ValueError(
                f"`corrupted_copies` must not be negative, got {self.corrupted_copies}."
            )
        if min(self.shares) <= 0 or sum(self.shares) > 1:
            raise ValueError(
                f"`shares` must be positive and add up to 1 at most, got {self.shares}."
            )

    @property
    def num_cameras(self) -> int:
        """Number of cameras, if the dataset has as many."""
        return self.cameras if isinstance(self.cameras, int) else len(self.cameras)


TABLETOP = Preset(
    image_height=64,
    computing=Computing(precision="bf16"),
    tokenizer_loop=LoopConfig(steps=1800, batch_size=16, learning_rate=1.5e-3, clip_norm=5.0),
    dynamics_loop=LoopConfig(steps=800, batch_size=12, muon_learning_rate=0.02),
    rollout_loop=LoopConfig(steps=120, batch_size=12, learning_rate=3e-4, muon_learning_rate=0.005),
    confidence_loop=LoopConfig(steps=400, batch_size=12, curriculum=((0.0, 2), (0.15, 40))),
    judge_loop=LoopConfig(steps=400, batch_size=16),
    horizon=34,
    action_dropout=0.0,
    shares=(0.85, 0.15),
)

FAST = replace(
    TABLETOP,
    dynamics=RecurrentConfig(),
    confidence=ConfidenceConfig(hidden=64),
    tokenizer_loop=replace(TABLETOP.tokenizer_loop, steps=3600),
    dynamics_loop=LoopConfig(
        steps=9000, batch_size=16, learning_rate=2e-3,
        curriculum=((0.0, 6), (0.15, 9), (0.3, 13), (0.5, 21)), average_decay=0.99,
    ),
    judge_loop=LoopConfig(steps=3000, batch_size=16),
    clip_frames=21,
)  # fmt: skip
"""The recurrent network, trained through its own rollouts; the shipped checkpoint."""

SMOKE = Preset(
    image_height=48,
    dynamics=DynamicsConfig(dim=64, condition_dim=32, layers=2, heads=2),
    confidence=ConfidenceConfig(hidden=64),
    tokenizer_loop=LoopConfig(steps=60, batch_size=8, learning_rate=2e-3, clip_norm=5.0),
    dynamics_loop=LoopConfig(steps=60, batch_size=4, muon_learning_rate=0.02),
    rollout_loop=LoopConfig(steps=10, batch_size=4, learning_rate=3e-4, muon_learning_rate=0.005),
    confidence_loop=LoopConfig(steps=30, batch_size=4),
    judge_loop=LoopConfig(steps=20, batch_size=4),
    clip_frames=6,
    rollout_passes=2,
    horizon=6,
    longest_start=4,
    pair_stride=3,
    compositor_loop=LoopConfig(steps=300, batch_size=4, learning_rate=3e-3, average_decay=0.98),
    picture_loop=LoopConfig(steps=200, batch_size=16, learning_rate=3e-3, average_decay=0.95),
)

LARGE = DynamicsConfig(
    patch=2, dim=1024, condition_dim=1024, layers=16, heads=16, mlp_ratio=4.0, context=10
)
"""600 million parameters."""

BRIDGE_256 = Preset(
    image_height=256,
    tokenizer=TokenizerConfig(widths=(32, 64, 128, 256), layers=(0, 2, 2, 4)),
    dynamics=LARGE,
    confidence=ConfidenceConfig(hidden=1024),
    computing=Computing(precision="bf16", checkpoint_blocks=True, compile_blocks=True),
    tokenizer_loop=LoopConfig(
        steps=100_000, batch_size=32, learning_rate=1e-3, warmup=1000, clip_norm=5.0,
        average_decay=0.9995, checkpoint_every=1000, validate_every=5000,
    ),
    dynamics_loop=LoopConfig(
        steps=200_000, batch_size=64, learning_rate=3e-4, muon_learning_rate=0.01, warmup=2000,
        average_decay=0.9999, curriculum=((0.0, 8), (0.5, 16)), checkpoint_every=1000,
        validate_every=5000,
    ),
    rollout_loop=LoopConfig(
        steps=20_000, batch_size=64, learning_rate=1e-4, muon_learning_rate=0.003, warmup=500,
        average_decay=0.9995, checkpoint_every=500, validate_every=2500,
    ),
    confidence_loop=LoopConfig(
        steps=5000, batch_size=32, learning_rate=3e-4, warmup=200, checkpoint_every=250,
        validate_every=1000, curriculum=((0.0, 2), (0.15, 20)),
    ),
    judge_loop=LoopConfig(steps=4000, batch_size=16, checkpoint_every=500),
    image_share=0.1,
    clip_frames=16,
    horizon=16,
    longest_start=4,
    num_steps=10,
    action_dropout=0.1,
    shares=(0.9, 0.05),
)  # fmt: skip
"""Bridge at 256 pixels. Untested at full length: no complete run exists yet."""

DROID_3VIEW = replace(
    BRIDGE_256,
    image_height=192,
    cameras=3,
    frame_stride=3,
    action_chunk="encode",
    dynamics_loop=replace(
        BRIDGE_256.dynamics_loop, batch_size=32, curriculum=((0.0, 6), (0.5, 12))
    ),
    rollout_loop=replace(BRIDGE_256.rollout_loop, batch_size=32),
    confidence_loop=replace(
        BRIDGE_256.confidence_loop, batch_size=16, curriculum=((0.0, 2), (0.15, 28))
    ),
    clip_frames=12,
    horizon=24,
    pair_stride=4,
)
"""DROID with its three cameras at 192x320 pixels, 15 Hz data at 5 Hz. Untested at full length.

The network gets the three actions between two frames, concatenated."""

LAPTOP = replace(
    FAST,
    dynamics=RecurrentConfig(features=96, memory=32),
    tokenizer_loop=replace(FAST.tokenizer_loop, steps=2000),
    dynamics_loop=replace(
        FAST.dynamics_loop,
        steps=4000,
        curriculum=((0.0, 5), (0.2, 8), (0.5, 13)),
        validate_every=25,
        keep_best=True,
    ),
    confidence_loop=LoopConfig(steps=400, batch_size=8, curriculum=((0.0, 2), (0.15, 20))),
    clip_frames=13,
    horizon=16,
    longest_start=4,
    pair_stride=3,
    shares=(0.65, 0.15),
)
"""A few CPU-hours: real data, such as Bridge or DROID, one camera, at 64 pixels."""

GPU_DAY = replace(
    DROID_3VIEW,
    image_height=128,
    dynamics=DynamicsConfig(
        patch=2, dim=512, condition_dim=512, layers=8, heads=8, mlp_ratio=4.0, context=8
    ),
    confidence=ConfidenceConfig(hidden=512),
    tokenizer_loop=replace(BRIDGE_256.tokenizer_loop, steps=30_000),
    dynamics_loop=replace(DROID_3VIEW.dynamics_loop, steps=60_000, batch_size=32),
    rollout_loop=replace(DROID_3VIEW.rollout_loop, steps=8000, batch_size=32),
    cameras=2,
    frame_stride=1,
    action_chunk="sum",
)
"""One GPU for about a day, two cameras at 128 pixels. Untested: no run exists yet."""

PRESETS = {
    "smoke": SMOKE,
    "laptop": LAPTOP,
    "gpu-day": GPU_DAY,
    "tabletop": TABLETOP,
    "fast": FAST,
    "bridge-256": BRIDGE_256,
    "droid-3view": DROID_3VIEW,
}


def get_preset(name: str) -> Preset:
    """Preset by name."""
    try:
        return PRESETS[name]
    except KeyError:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown preset {name!r}; known: {sorted(PRESETS)}.{hint}") from None
