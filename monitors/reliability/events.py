"""Event forecasts: calibrated confidence of a region, a frame or the first steps of a rollout.

The event is that the mean absolute error stays within ε. The mean of subpatch confidences is not
its probability, because the mean error varies less than the error of one subpatch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from worldmodel.monitors.arrays import require_probabilities
from worldmodel.monitors.errors import require_fitted
from worldmodel.monitors.reliability.recalibration import MIN_EPISODES, band_index, horizon_bands

QUANTILES = 101
"""Quantiles that represent the error distribution of an event."""
BOXES_PER_FRAME = 4
"""Random boxes of each size per frame, for fitting regions."""
SMALLEST = 1e-6
"""Errors are clipped to at least this value before taking logarithms."""

LevelMaps = Float[np.ndarray, "time view channel h w level"]
Horizons = Int[np.ndarray, " time"]
Mask = Bool[np.ndarray, "#time view h w"]
Probabilities = Float64[np.ndarray, "time level"]


@runtime_checkable
class Forecast(Protocol):
    """Forecasts and outcomes of one episode, as arrays or CPU tensors."""

    @property
    def confidence(self) -> Any:
        """P(error <= ε) per subpatch, [time, view, channel, h, w, level]."""

    @property
    def error(self) -> Any:
        """Absolute error in latent standard deviations, [time, view, channel, h, w]."""

    @property
    def horizon(self) -> Any:
        """Frames since the last real one, [time]; 0 where the frame was not imagined."""

    @property
    def view_valid(self) -> Any:
        """False where the episode lacks a camera, [time, view]; None: it has all."""


def expected_error(
    confidence: Float[np.ndarray, "*any level"], epsilons: Sequence[float]
) -> Float64[np.ndarray, "*any"]:
    """Mean of min(error, largest ε) implied by confidence: the integral of 1 - P.

    P is 0 at 0 and linear between the levels.

    >>> expected_error(np.array([[0.5, 1.0], [0.0, 0.0]]), (0.5, 1.0)).tolist()
    [0.5, 1.0]
    """
    stated = require_probabilities(confidence)
    below = np.concatenate([np.zeros_like(stated[..., :1]), stated[..., :-1]], axis=-1)
    return (1 - (below + stated) / 2) @ np.diff(epsilons, prepend=0.0)


def region_mean(
    values: Float[np.ndarray, "time view channel h w *level"], mask: Mask
) -> Float64[np.ndarray, " time *level"]:
    """Mean over channels and the positions in `mask`, per frame; NaN for an empty mask."""
    inside = np.broadcast_to(mask, (len(values), *mask.shape[1:])).astype(np.float64)
    total = np.einsum("tvhw,tvchw...->t...", inside, values)
    count = (inside.sum(axis=(1, 2, 3)) * values.shape[2]).reshape(-1, *[1] * (total.ndim - 1))
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def rollout_max(
    frame_error: Float[np.ndarray, " time"], horizon: Horizons
) -> Float64[np.ndarray, " time"]:
    """Largest frame error of each rollout so far; a rollout starts where the horizon is 1.

    >>> rollout_max(np.array([0.0, 0.2, 0.1, 0.3, 0.1]), np.array([0, 1, 2, 3, 1])).tolist()
    [0.0, 0.2, 0.2, 0.3, 0.1]
    """
    largest = frame_error.astype(np.float64)
    for t in range(1, len(largest)):
        if horizon[t] > 1:
            largest[t] = np.fmax(largest[t - 1], largest[t])
    return largest


def whole_frame(shape: Sequence[int], view_valid: Any = None) -> Mask:
    """Mask of all positions of maps [time, view, channel, h, w], except missing cameras."""
    time, view, _, height, width = shape[:5]
    view_mask = np.ones((time, view), dtype=bool) if view_valid is None else np.asarray(view_valid)
    return np.broadcast_to(view_mask[:, :, None, None], (time, view, height, width))


def random_boxes(rng: np.random.Generator, shapes: Sequence[tuple[int, int]], frame: Mask) -> Mask:
    """Mask with one random box per frame, in one camera, with a shape drawn from `shapes`.

    `frame` comes from `whole_frame`; the mask is empty if the drawn camera is missing.
    """
    time, views, height, width = frame.shape
    size = np.array(shapes)[rng.integers(len(shapes), size=time)]
    corner = rng.integers(0, np.array([height, width]) - size + 1)
    view = np.arange(views) == rng.integers(views, size=(time, 1))
    row, column = (
        (np.arange(length) >= corner[:, [i]]) & (np.arange(length) < (corner + size)[:, [i]])
        for i, length in enumerate((height, width))
    )
    return frame & view[:, :, None, None] & row[:, None, :, None] & column[:, None, None, :]


class EventConfidence:
    """P(error of an event <= ε) for every ε, from one fit to calibration episodes.

    The expected error implied by subpatch confidence, averaged over the region, predicts the
    event's error: log error = slope * log expected + residual. Slope and residual distribution are
    fitted per band of horizons and per region size (up to 1, 4, 16, ... positions), because a mean
    over more positions varies less, by an amount that depends on their correlation. Bands with
    fewer than `MIN_EPISODES` episodes are merged with the next.
    """

    def __init__(self, epsilons: Sequence[float]) -> None:
        if not epsilons or list(epsilons) != sorted(epsilons) or epsilons[0] <= 0:
            raise ValueError(f"`epsilons` must be positive and increasing, got {list(epsilons)}.")
        self.epsilons = tuple(epsilons)

    def fit(self, forecasts: Sequence[Forecast], *, rng: np.random.Generator) -> EventConfidence:
        """Fit to calibration episodes; regions are random boxes drawn by `rng`."""
        if len(forecasts) < MIN_EPISODES:
            raise ValueError(
                f"`forecasts` must hold at least {MIN_EPISODES} episodes, got {len(forecasts)}; "
                "fewer do not show the spread of an event's error."
            )
        samples: dict[str, list[np.ndarray]] = defaultdict(list)
        for number, forecast in enumerate(forecasts):
            horizon = np.asarray(forecast.horizon)
            for event, stated, actual in self._samples(forecast, rng):
                rows = np.stack([np.full(len(actual), number), horizon, stated, actual], axis=1)
                samples[event].append(rows[(horizon > 0) & ~np.isnan(actual)])
        self.curves_ = {event: _fit_bands(np.concatenate(rows)) for event, rows in samples.items()}
        return self

    def _samples(
        self, forecast: Forecast, rng: np.random.Generator
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield event, expected and actual error of each frame."""
        confidence, error = np.asarray(forecast.confidence), np.asarray(forecast.error)
        horizon, stated = np.asarray(forecast.horizon), expected_error(confidence, self.epsilons)
        frame = whole_frame(error.shape, forecast.view_valid)
        expected, actual = region_mean(stated, frame), region_mean(error, frame)
        yield "frame", expected, actual
        yield "rollout", rollout_max(expected, horizon), rollout_max(actual, horizon)
        for size, shapes in _box_sizes(*error.shape[-2:]).items():
            for _ in range(BOXES_PER_FRAME):
                mask = random_boxes(rng, shapes, frame)
                yield f"region{size}", region_mean(stated, mask), region_mean(error, mask)

    def region(self, confidence: LevelMaps, horizon: Horizons, mask: Mask) -> Probabilities:
        """P(mean absolute error over the positions in `mask` <= ε), per frame.

        1 where the frame was not imagined (horizon 0), NaN where the mask is empty.
        """
        stated = region_mean(expected_error(confidence, self.epsilons), mask)
        sizes = np.broadcast_to(mask.sum(axis=(1, 2, 3)), len(confidence))
        require_fitted(self, "curves_")
        known = sorted(int(name[6:]) for name in self.curves_ if name.startswith("region"))
        events = [f"region{known[band_index(known, size)]}" for size in sizes.tolist()]
        return self._probabilities(events, stated, horizon)

    def frame(
        self,
        confidence: LevelMaps,
        horizon: Horizons,
        view_valid: Bool[np.ndarray, "time view"] | None = None,
    ) -> Probabilities:
        """P(mean absolute error over the whole frame <= ε), all cameras together."""
        stated = self._frame_error(confidence, view_valid)
        return self._probabilities(["frame"] * len(stated), stated, horizon)

    def rollout(
        self,
        confidence: LevelMaps,
        horizon: Horizons,
        view_valid: Bool[np.ndarray, "time view"] | None = None,
    ) -> Probabilities:
        """P(largest frame error since the start of the rollout, horizon 1, <= ε)."""
        stated = rollout_max(self._frame_error(confidence, view_valid), horizon)
        return self._probabilities(["rollout"] * len(stated), stated, horizon)

    def _frame_error(
        self, confidence: LevelMaps, view_valid: Bool[np.ndarray, "time view"] | None
    ) -> Float64[np.ndarray, " time"]:
        frame = whole_frame(confidence.shape, view_valid)
        return region_mean(expected_error(confidence, self.epsilons), frame)

    def _probabilities(
        self, events: Sequence[str], stated: Float64[np.ndarray, " time"], horizon: Horizons
    ) -> Probabilities:
        require_fitted(self, "curves_")
        result = np.ones((len(stated), len(self.epsilons)))
        for t in np.flatnonzero(horizon > 0).tolist():
            bands = self.curves_[events[t]]
            ends = sorted(bands)
            curve = bands[ends[band_index(ends, int(horizon[t]))]]
            result[t] = _probability(curve, stated[t], np.array(self.epsilons))
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "curves_")
        curves = {
            f"{event}/{band}": curve
            for event, bands in self.curves_.items()
            for band, curve in bands.items()
        }
        return {"epsilons": np.array(self.epsilons), **curves}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EventConfidence:
        """Inverse of `arrays`."""
        events = cls(arrays["epsilons"].tolist())
        events.curves_ = defaultdict(dict)
        for name, array in arrays.items():
            event, slash, band = name.partition("/")
            if slash:
                events.curves_[event][int(band)] = array
        return events


def _box_sizes(height: int, width: int) -> dict[int, list[tuple[int, int]]]:
    """Size class (at most 1, 4, 16, ... positions) -> heights and widths of its boxes."""
    sizes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            sizes[1 << 2 * -(-((rows * columns - 1).bit_length()) // 2)].append((rows, columns))
    return sizes


def _fit_bands(samples: Float64[np.ndarray, "n 4"]) -> dict[int, Float64[np.ndarray, " k"]]:
    """End of each horizon band -> its curve; columns: episode, horizon, expected, actual."""
    episode, horizon = samples[:, 0].astype(int), samples[:, 1].astype(int)
    reached = {
        h: np.isin(np.arange(episode.max() + 1), episode[horizon == h])
        for h in np.unique(horizon).tolist()
    }
    return {
        band: _fit_curve(samples[np.isin(horizon, horizons)])
        for band, horizons in horizon_bands(reached, MIN_EPISODES).items()
    }


def _fit_curve(samples: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, " k"]:
    """Number of episodes, slope, and quantiles of the residual."""
    stated, actual = np.log(samples[:, 2:].clip(SMALLEST)).T
    spread = stated.var()
    slope = max(np.cov(stated, actual, bias=True)[0, 1] / spread, 0.0) if spread > 0 else 1.0
    quantiles = np.quantile(actual - slope * stated, np.linspace(0, 1, QUANTILES))
    return np.concatenate([[len(np.unique(samples[:, 0])), slope], quantiles])


def _probability(
    curve: Float64[np.ndarray, " k"], stated: float, epsilons: Float64[np.ndarray, " level"]
) -> Float64[np.ndarray, " level"]:
    """P(error <= ε), kept away from 0 and 1 by 0.5 / (n + 1) for n episodes."""
    edge = 0.5 / (curve[0] + 1)
    levels = np.linspace(edge, 1 - edge, QUANTILES)
    return np.interp(np.log(epsilons) - curve[1] * np.log(max(stated, SMALLEST)), curve[2:], levels)
