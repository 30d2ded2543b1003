"""Nuisances: changes of a picture that do no harm, which a monitor can be calibrated to tolerate.

Codecs, scaling, exposure and sensors change every pixel a little. A nuisance is declared when a
monitor is fitted; the alarm rates then hold under each declared nuisance alone, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

Video = UInt8[np.ndarray, "time *view height width 3"]

DEFAULTS = (
    "jpeg:75",
    "scale:0.75",
    "exposure:0.1",
    "gamma:0.1",
    "noise:3",
    "shift:1",
    "blur:0.7",
)  # fmt: skip
"""Nuisances that `worldmodel calibrate` declares unless told otherwise."""


@dataclass(frozen=True)
class Nuisance:
    """One declared change of the picture, up to an amount."""

    kind: str
    """One of `KINDS`."""
    amount: float
    """Largest change, in the unit of its kind; negative: darker or lower gamma."""

    @property
    def name(self) -> str:
        """Name for people and files, for example "jpeg 75" or "exposure +0.1"."""
        return KINDS[self.kind].named.format(self.amount)

    @property
    def acts_on_colours(self) -> bool:
        """Whether each pixel changes by itself, by its own colour alone."""
        return self.kind in ("exposure", "gamma")

    def __call__(self, video: Video, strength: float = 1.0, *, seed: int = 0) -> Video:
        """Changed copy of a video.

        Args:
            video: Frames.
            strength: Share of the declared amount, in (0, 1].
            seed: Seed of noise and of the direction of a shift.
        """
        rng = np.random.default_rng(seed)
        return KINDS[self.kind].apply(video, self.amount, strength, rng)


def declared(specs: Sequence[str]) -> tuple[Nuisance, ...]:
    """Nuisances from texts such as "jpeg:75"; "none" alone gives none.

    Exposure and gamma give two, one for each direction.

    >>> [n.name for n in declared(["jpeg:75", "exposure:0.1"])]
    ['jpeg 75', 'exposure +0.1', 'exposure -0.1']

    Raises:
        ValueError: An unknown kind, an amount outside its range, or the same kind twice.
    """
    if list(specs) == ["none"]:
        return ()
    found: list[Nuisance] = []
    for spec in specs:
        kind, _, text = spec.partition(":")
        if kind not in KINDS:
            known = ", ".join(f"{k}:{v.example}" for k, v in KINDS.items())
            raise ValueError(f"Unknown nuisance {spec!r}; use some of {known}, or none alone.")
        low, high = KINDS[kind].limits
        try:
            amount = float(text)
        except ValueError:
            amount = math.nan
        if not low <= amount <= high:
            raise ValueError(
                f"The nuisance {spec!r} needs a number from {low:g} to {high:g} after the colon, "
                f"for example {kind}:{KINDS[kind].example}."
            )
        if any(nuisance.kind == kind for nuisance in found):
            raise ValueError(f"The nuisance {kind} is declared twice; give its largest amount.")
        both = kind in ("exposure", "gamma")
        found += [Nuisance(kind, amount), *([Nuisance(kind, -amount)] if both else [])]
    return tuple(found)


def _rounded(pixels: np.ndarray) -> UInt8[np.ndarray, ...]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _jpeg(video: Video, quality: float, strength: float, rng: np.random.Generator) -> Video:
    """Compress each frame with colours at half resolution, as cameras do."""
    import simplejpeg

    level = round(100 - (100 - quality) * strength)
    flat = np.ascontiguousarray(video.reshape(-1, *video.shape[-3:]))
    coded = (simplejpeg.encode_jpeg(f, quality=level, colorsubsampling="420") for f in flat)
    return np.stack([simplejpeg.decode_jpeg(c) for c in coded]).reshape(video.shape)


def _scaled(video: Video, factor: float, strength: float, rng: np.random.Generator) -> Video:
    """Reduce the frame to `factor` of its size and enlarge it again (area mean, bilinear)."""
    share = 1 - (1 - factor) * strength
    rows, columns = (_rescaling(side, max(1, round(side * share))) for side in video.shape[-3:-1])
    across = np.swapaxes(columns @ video.astype(np.float32), -3, -2)
    return _rounded(np.swapaxes(rows @ across, -3, -2))


def _rescaling(length: int, count: int) -> Float32[np.ndarray, "{length} {length}"]:
    """Weights that reduce `length` pixels to `count` and enlarge them again."""
    edges, pixels = np.linspace(0, length, count + 1), np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    means = overlap.clip(0) * count / length
    middles = (edges[1:] + edges[:-1]) / 2
    back = np.stack([np.interp(pixels + 0.5, middles, row) for row in np.eye(count)], axis=1)
    return (back @ means).astype(np.float32)


def _exposure(video: Video, share: float, strength: float, rng: np.random.Generator) -> Video:
    return _rounded(video * np.float32(1 + share * strength))


def _gamma(video: Video, share: float, strength: float, rng: np.random.Generator) -> Video:
    return _rounded(255 * (video / np.float32(255)) ** np.float32(1 + share * strength))


def _noise(video: Video, deviation: float, strength: float, rng: np.random.Generator) -> Video:
    return _rounded(video + strength * deviation * rng.standard_normal(video.shape, np.float32))


def _shifted(video: Video, pixels: float, strength: float, rng: np.random.Generator) -> Video:
    """Move the picture in a random direction, the same for all frames; edges are repeated."""
    step = max(1, round(pixels * strength))
    down, right = [(-step, 0), (step, 0), (0, -step), (0, step)][rng.integers(4)]
    rows = np.clip(np.arange(video.shape[-3]) - down, 0, video.shape[-3] - 1)
    columns = np.clip(np.arange(video.shape[-2]) - right, 0, video.shape[-2] - 1)
    return video[..., rows[:, None], columns, :]


def _blurred(video: Video, deviation: float, strength: float, rng: np.random.Generator) -> Video:
    from scipy.ndimage import gaussian_filter

    spread = (*(0,) * (video.ndim - 3), deviation * strength, deviation * strength, 0)
    return _rounded(gaussian_filter(video.astype(np.float32), spread, mode="nearest"))


@dataclass(frozen=True)
class NuisanceKind:
    """How one kind of nuisance is applied, and its amounts."""

    apply: Callable[[Video, float, float, np.random.Generator], Video]
    limits: tuple[float, float]
    example: str
    named: str


KINDS = {
    "jpeg": NuisanceKind(_jpeg, (1.0, 100.0), "75", "jpeg {:g}"),
    "scale": NuisanceKind(_scaled, (0.1, 1.0), "0.75", "scale {:g}"),
    "exposure": NuisanceKind(_exposure, (0.001, 0.9), "0.1", "exposure {:+.3g}"),
    "gamma": NuisanceKind(_gamma, (0.001, 0.9), "0.1", "gamma {:+.3g}"),
    "noise": NuisanceKind(_noise, (0.1, 100.0), "3", "noise {:g}"),
    "shift": NuisanceKind(_shifted, (1.0, 100.0), "1", "shift {:g}"),
    "blur": NuisanceKind(_blurred, (0.1, 50.0), "0.7", "blur {:g}"),
}
"""Kind -> what it does. jpeg: lowest quality; scale: lowest factor; exposure and gamma: largest
relative change in either direction; noise: standard deviation in grey levels; shift: pixels; blur:
standard deviation in pixels. Pixels are those of the model's frames."""
