"""Cause classifier: lighting, background, clutter, object, end effector or camera.

Faults around a robot have no labelled examples, so the model is trained on edited nominal episodes
with one change each. It computes descriptors of each frame's departure from nominal frames,
averages them since the alarm began, and classifies the mean by softmax regression. The result is
"unknown" if no cause is likely enough or the picture resembles no edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, UInt8

from worldmodel.monitors.causes.additive_regression import AdditiveRegression
from worldmodel.monitors.causes.descriptors import (
    FAR,
    GRID,
    NUM_DESCRIPTORS,
    Departure,
    ViewReference,
)
from worldmodel.monitors.errors import require_fitted

UNKNOWN = "unknown"
CLIP_LENGTHS = (1, 3, 8)
"""Numbers of frames over which training descriptors of edited clips are averaged."""
FORMER_NAMES = {"target": "object", "embodiment": "end_effector"}
"""Name of a cause in earlier versions -> its name now, that of the simulator's factor."""
LIKELY = 0.5
"""Smallest probability at which a cause is named."""
STANDS_OUT = 1.0
"""Smallest distance from nominal descriptors, in their spreads, at which a change is named."""
OUTSIDE = 1.2
"""Largest distance outside the edits' range, in their spreads, at which a cause is named."""
NARROW = 0.05
"""Smallest nominal spread of a descriptor, as a share of its spread over the edits."""

Episode = UInt8[np.ndarray, "_ view _ _ 3"]
Frame = UInt8[np.ndarray, "view height width 3"]
Descriptors = Float64[np.ndarray, " d"]


class CauseEvidence:
    """Running sums of one camera's descriptors since the alarm began, in constant memory."""

    def __init__(self) -> None:
        self.frames = 0
        self.total = np.zeros(NUM_DESCRIPTORS)
        self.places = np.zeros((GRID, GRID))
        self.kept, self.new = 0.0, 0.0
        self.last: np.ndarray | None = None

    def add(self, departure: Departure) -> None:
        """Add one frame."""
        self.frames += 1
        self.total += departure.descriptors
        self.places += departure.places
        unseen, last = departure.unseen, self.last
        if last is not None:
            self.kept += float((unseen * last).sum())
            self.new += float((unseen**2).sum() + (last**2).sum()) / 2
        self.last = unseen

    def mean(self) -> Descriptors:
        """Mean descriptors, and the share of new colour that stays in place between frames."""
        stays = self.kept / self.new if self.new > 1 else 0.5
        return np.append(self.total / self.frames, stays)


@dataclass(frozen=True)
class ViewCauses:
    """Fitted reference and classifier of one camera."""

    reference: ViewReference
    regression: AdditiveRegression
    nominal: Float64[np.ndarray, "2 d"]
    """Mean and standard deviation of the nominal descriptors."""

    def deviation(self, descriptors: Descriptors) -> float:
        """Root mean square distance from the nominal descriptors, in their spreads."""
        return float(np.sqrt((((descriptors - self.nominal[0]) / self.nominal[1]) ** 2).mean()))


class CauseModel:
    """Names the cause of an alarm: `reset`, then `observe` each frame since, then `name`."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def fit(
        self, reference: Sequence[Episode], edited: Mapping[str, Sequence[Episode]]
    ) -> CauseModel:
        """Fit to nominal episodes and to edited clips of each cause.

        In each view, clips that deviate less than the median nominal clip are ignored.

        Raises:
            ValueError: fewer than two causes are visible in a view.
        """
        if not reference or len(edited) < 2:
            raise ValueError(
                "`reference` must hold episodes and `edited` at least two causes, got "
                f"{len(reference)} episodes and {sorted(edited)}; record more."
            )
        rng = np.random.default_rng(self.seed)
        self.causes_ = tuple(edited)
        self.views_ = []
        for view in range(reference[0].shape[1]):
            nominal = [episode[:, view] for episode in reference]
            clips = [[clip[:, view] for clip in edited[cause]] for cause in self.causes_]
            self.views_.append(_learn_view(nominal, clips, rng))
        self.reset()
        return self

    def reset(self) -> None:
        """Discard the frames observed so far."""
        require_fitted(self, "views_")
        self._evidence = [CauseEvidence() for _ in self.views_]

    def observe(self, frame: Frame) -> None:
        """Add a frame of all views; call it from the start of the alarm."""
        require_fitted(self, "views_")
        if frame.shape[0] != len(self.views_):
            raise ValueError(f"`frame` must have {len(self.views_)} views, got {frame.shape[0]}.")
        for picture, view, evidence in zip(frame, self.views_, self._evidence, strict=True):
            evidence.add(view.reference.depart(picture))

    def posterior(self) -> dict[str, float]:
        """Probability of each cause from the most deviating view; empty before the first frame.

        The class "unknown", if among the edits, stands for every other change.
        """
        if not self._seen():
            return {}
        view, descriptors = self._deviating()
        chances = self.views_[view].regression.posterior(descriptors)
        return dict(zip(self.causes_, chances.tolist(), strict=True))

    def name(self) -> tuple[str, float]:
        """Most likely cause and its probability.

        "unknown" if the probability is too low, or the picture resembles no edit or a nominal one.
        """
        posterior = self.posterior()
        if not posterior:
            return UNKNOWN, 0.0
        cause = max(posterior, key=posterior.__getitem__)
        view, descriptors = self._deviating()
        unlike_edits = self.views_[view].regression.outside(descriptors) > OUTSIDE
        nominal = self.views_[view].deviation(descriptors) < STANDS_OUT
        known = posterior[cause] >= LIKELY and not unlike_edits and not nominal
        return cause if known else UNKNOWN, posterior[cause]

    def where(self) -> tuple[int, str] | None:
        """Most deviating view and the region in it; None before the first frame."""
        if not self._seen():
            return None
        view = self._deviating()[0]
        evidence = self._evidence[view]
        return view, region(evidence.places / evidence.frames)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned parameters as NumPy arrays."""
        require_fitted(self, "views_")
        text = np.frombuffer("\n".join(self.causes_).encode(), dtype=np.uint8)
        arrays = {"causes": text, "num_views": np.array([len(self.views_)])}
        for number, view in enumerate(self.views_):
            parts = {"reference": view.reference.arrays(), "regression": view.regression.arrays()}
            arrays[f"{number}.nominal"] = view.nominal
            for part, learned in parts.items():
                arrays |= {f"{number}.{part}.{name}": array for name, array in learned.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CauseModel:
        """Inverse of `arrays`."""
        model = cls()
        stored = arrays["causes"].tobytes().decode().split("\n")
        model.causes_ = tuple(FORMER_NAMES.get(name, name) for name in stored)
        model.views_ = [
            ViewCauses(
                ViewReference.from_arrays(_below(arrays, f"{number}.reference.")),
                AdditiveRegression.from_arrays(_below(arrays, f"{number}.regression.")),
                arrays[f"{number}.nominal"],
            )
            for number in range(int(arrays["num_views"][0]))
        ]
        model.reset()
        return model

    def _seen(self) -> bool:
        require_fitted(self, "views_")
        return self._evidence[0].frames > 0

    def _deviating(self) -> tuple[int, Descriptors]:
        """Most deviating view and its descriptors."""
        means = [evidence.mean() for evidence in self._evidence]
        far = [view.deviation(mean) for view, mean in zip(self.views_, means, strict=True)]
        view = int(np.argmax(far))
        return view, means[view]


def region(places: Float64[np.ndarray, "height width"]) -> str:
    """Name of the third of the picture where a departure map is largest.

    >>> region(np.outer(np.arange(9.0), [1, 0, 0]))
    'lower left third'
    >>> region(np.array([[0.0, 0.0], [9.0, 0.0]]))
    'lower left third'
    """
    if (places > FAR).mean() > 0.5:
        return "the whole picture"
    if min(places.shape) < 3:
        places = np.kron(places, np.ones((3, 3)))
    (top, height), (left, width) = (_thirds(side) for side in places.shape)
    sums = np.add.reduceat(np.add.reduceat(places, top, axis=0), left, axis=1)
    cells = sums / (height[:, None] * width)
    row, column = divmod(int(cells.argmax()), 3)
    vertical, horizontal = ("upper", "middle", "lower")[row], ("left", "", "right")[column]
    words = (vertical, horizontal, "third") if (row, column) != (1, 1) else ("centre",)
    return " ".join(word for word in words if word)


def _thirds(side: int) -> tuple[Int[np.ndarray, " third"], Int[np.ndarray, " third"]]:
    """Start and length of each third of a side; earlier thirds are at most one longer."""
    length = side // 3 + (np.arange(3) < side % 3)
    return np.cumsum(length) - length, length


def _learn_view(
    nominal: Sequence[np.ndarray], clips: Sequence[Sequence[np.ndarray]], rng: np.random.Generator
) -> ViewCauses:
    """Fit one camera's reference and its classifier on edited clips."""
    reference = ViewReference().fit(nominal, rng=rng)
    plain = np.concatenate(
        [_examples(reference, video[start:]) for video in nominal for start in (0, len(video) // 2)]
    )
    rows = [
        np.concatenate([np.empty((0, plain.shape[1])), *(_examples(reference, c) for c in some)])
        for some in clips
    ]
    spread = np.concatenate(rows).std(axis=0)
    floor = np.sqrt(plain.var(axis=0) + (NARROW * spread) ** 2 + 1e-12)
    view = ViewCauses(reference, AdditiveRegression(), np.stack([plain.mean(axis=0), floor]))
    usual = np.median([view.deviation(row) for row in plain])
    seen = [np.array([row for row in some if view.deviation(row) >= usual]) for some in rows]
    if sum(len(some) > 0 for some in seen) < 2:
        raise ValueError(
            "`edited` must show at least two causes in every view; make edits stronger."
        )
    classes = np.repeat(np.arange(len(seen)), [len(some) for some in seen])
    examples = np.concatenate([some for some in seen if len(some)])
    view.regression.fit(examples, classes, number=len(seen))
    return view


def _examples(reference: ViewReference, video: np.ndarray) -> Float64[np.ndarray, "n d"]:
    """Mean descriptors of the video's first frames, for each of `CLIP_LENGTHS` it reaches."""
    evidence, rows = CauseEvidence(), []
    for picture in video[: CLIP_LENGTHS[-1]]:
        evidence.add(reference.depart(picture))
        if evidence.frames in CLIP_LENGTHS:
            rows.append(evidence.mean())
    return np.array(rows)


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Select the arrays whose names start with `prefix`, and strip it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
