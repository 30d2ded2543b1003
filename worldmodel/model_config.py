"""Configuration of a checkpoint, stored next to its weights as config.json."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from worldmodel.checkpoint import Provenance
from worldmodel.datasets.actions import ActionSpec
from worldmodel.networks.c3 import C3Config
from worldmodel.networks.compositor import CompositorConfig
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.networks.dynamics import DynamicsConfig
from worldmodel.networks.pixel_confidence import PixelConfidenceConfig
from worldmodel.networks.recurrent import RecurrentConfig
from worldmodel.networks.sampler import Sampling
from worldmodel.structured_files import converted, read_json

FORMAT = 1
"""Version of the checkpoint format."""
ADVICE = "copy the checkpoint again"
NetworkConfig = DynamicsConfig | RecurrentConfig | C3Config
NETWORKS: dict[str, type[NetworkConfig]] = {
    "own": DynamicsConfig,
    "recurrent": RecurrentConfig,
    "reference": C3Config,
}
"""Value of `network` in a stored config -> config class; the default is "own"."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configuration of a checkpoint, stored next to its weights."""

    dynamics: NetworkConfig
    """Config of one of our dynamics networks or of an imported C3 network."""
    confidence: ConfidenceConfig
    """Config of our confidence head; unused if the network has its own."""
    image_size: tuple[int, int]
    """Height and width of the model's frames, in pixels."""
    cameras: tuple[str, ...]
    """Names of the cameras, in the order of the view axis."""
    action_spec: ActionSpec
    """Specification of the actions it was trained on."""
    num_steps: int = 1
    """Sampler steps per imagined frame."""
    sampler: str = "euler"
    """Sampler: "euler", "heun" or "ddim", see `Sampling`."""
    guidance: float = 1.0
    """Guidance weight of the sampler, see `Sampling`."""
    pairing: str = "next"
    """Action row of an episode that the network sees with frame t + 1: "next", row t, which leads
    to it; or "same", row t + 1, which was commanded at it (training of C3 and WorldGym)."""
    tasks: tuple[str, ...] = ()
    """Instructions with success labels in the training data, each with an output of the success
    classifiers; empty: one output for all."""
    compositor: CompositorConfig | None = None
    """Config of the network that composes pictures; None: composed without one, see
    `WorldModel.show`."""
    pictures: PixelConfidenceConfig | None = None
    """Config of the confidence in pictures; None: it states none."""
    trained_horizon: int = 16
    """Longest horizon in the training of the confidence head, in frames."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Training record: data, steps, seed, versions."""

    def __post_init__(self) -> None:
        if self.dynamics.action_dim != self.action_spec.dim:
            raise ValueError(
                f"`dynamics` takes actions of {self.dynamics.action_dim} numbers, `action_spec` "
                f"has {self.action_spec.dim}."
            )
        if min(self.image_size) < 1:
            raise ValueError(f"`image_size` must be positive, got {self.image_size}.")
        if self.pairing not in ("next", "same"):
            raise ValueError(f'`pairing` must be "next" or "same", got {self.pairing!r}.')
        _ = self.sampling  # raises if invalid

    @property
    def rate_hz(self) -> float:
        return self.action_spec.rate_hz

    @property
    def sampling(self) -> Sampling:
        """Sampler of the checkpoint."""
        return Sampling(num_steps=self.num_steps, method=self.sampler, guidance=self.guidance)

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        network = next(name for name, kind in NETWORKS.items() if isinstance(self.dynamics, kind))
        return {
            **asdict(self),
            "dynamics": {"network": network, **asdict(self.dynamics)},
            "action_spec": self.action_spec.as_dict(),
            "format": FORMAT,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> ModelConfig:
        """Create a config from the output of `as_dict`."""
        if stored.get("format") != FORMAT:
            raise ValueError(
                f"`format` must be {FORMAT}, got {stored.get('format')!r}; the checkpoint is from "
                "another version."
            )
        own: Any = converted(stored, stored_config(), "it", ADVICE)
        shape = dict(own.dynamics)
        if (network := shape.pop("network", "own")) not in NETWORKS:
            raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}, got {network!r}.")
        kind = NETWORKS[network]
        if unknown := sorted(shape.keys() - kind.__dataclass_fields__.keys()):
            raise ValueError(f"`dynamics` has the unknown field {unknown[0]!r}.")
        fields = {name: getattr(own, name) for name in cls.__dataclass_fields__}
        fields["dynamics"] = converted(shape, kind, "`dynamics`", ADVICE)
        converted(own.provenance, Provenance, "`provenance`", ADVICE)
        fields["action_spec"] = ActionSpec.from_dict(own.action_spec, "`action_spec`")
        return cls(**fields)


@cache
def stored_config() -> type[msgspec.Struct]:
    """Type of the content of a config.json: the fields of `ModelConfig`.

    `dynamics` and `action_spec` are checked apart: the first has one of several types.
    """
    hints = get_type_hints(ModelConfig)
    apart = {"dynamics": dict[str, Any], "action_spec": dict[str, Any]}
    fields: list[Any] = [("format", int)]
    for own in dataclass_fields(ModelConfig):
        kind = apart.get(own.name, hints[own.name])
        if own.default_factory is not MISSING:
            fields.append((own.name, kind, msgspec.field(default_factory=own.default_factory)))
        elif own.default is not MISSING:
            fields.append((own.name, kind, own.default))
        else:
            fields.append((own.name, kind))
    return msgspec.defstruct("StoredConfig", fields, kw_only=True, forbid_unknown_fields=True)


def read_config(folder: Path) -> ModelConfig:
    """Read the config of a checkpoint folder."""
    try:
        return ModelConfig.from_dict(read_json(folder / "config.json", dict))
    except KeyError as error:
        raise ValueError(f"The config.json in {str(folder)!r} lacks {error}.") from error
    except (OSError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = str(error).removesuffix(".")
        raise ValueError(f"The config.json in {str(folder)!r} cannot be read: {reason}.") from error
