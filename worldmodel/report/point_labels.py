"""Non-overlapping point labels for scatter plots.

Placement is greedy and deterministic; adjustText 1.4 leaves overlaps in dense corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Affine2D

DISTANCES_PT = (6, 12, 20, 30, 42, 56, 72, 90, 110, 132)
"""Candidate distances of a label from its point (points)."""
ANGLES = np.linspace(0, 2 * np.pi, 12, endpoint=False)
MARKER_PT = 4.0
"""Half-width of the square reserved for a marker (points)."""

XY = Float[np.ndarray, " xy"]
Boxes = Float[np.ndarray, "box corners"]  # left, bottom, right, top
Lines = Float[np.ndarray, "line dot xy"]


@dataclass
class Surroundings:
    """Occupied space of the figure, in points."""

    inside: Float[np.ndarray, "1 corners"]
    """Area of the axes."""
    taken: Boxes
    """Markers and labels, which must not be covered."""
    lines: Lines
    """Lines that labels should avoid."""

    def place(self, anchor: XY, size: XY) -> XY:
        """Offset of the best position for a label of this size, which is then reserved.

        The cost counts hidden area most, then crossed lines, then distance.
        """
        places = offsets(size)
        boxes = centered_boxes(anchor + places, size)
        leaders = lines_between(np.broadcast_to(anchor, places.shape), anchor + places)
        outside = size.prod() - shared_area(boxes, self.inside)
        hidden = outside + shared_area(boxes, self.taken)
        crossed = enters(self.lines, boxes).sum(axis=0) + enters(leaders, self.taken).sum(axis=1)
        best = np.argmin(100 * hidden + 20 * crossed + np.linalg.norm(places, axis=1))
        self.taken = np.concatenate((self.taken, boxes[best, None]))
        self.lines = np.concatenate((self.lines, leaders[best, None]))
        return places[best]


def label_points(
    axes: Axes,
    names: Sequence[str],
    points: Float[np.ndarray, "point xy"],
    lines: Float[np.ndarray, "line end xy"],
) -> list[Annotation]:
    """Label each point inside the axes, clear of markers and labels, and of lines where possible.

    Coincident points share one label. `points` and `lines` are in data units. Set the limits and
    the axis labels first.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # fixes the position of the axes
    to_points = axes.transData + figure.dpi_scale_trans.inverted() + Affine2D().scale(72)
    labels: dict[tuple[float, float], str] = {}
    for name, (x, y) in zip(names, points.tolist(), strict=True):
        labels[x, y] = f"{labels[x, y]}\n{name}" if (x, y) in labels else name
    anchors = to_points.transform(list(labels))
    around = Surroundings(
        inside=np.array(axes.bbox.extents)[None] * 72 / figure.dpi,
        taken=centered_boxes(anchors, np.full(2, 2 * MARKER_PT)),
        lines=lines_between(to_points.transform(lines[:, 0]), to_points.transform(lines[:, 1])),
    )
    texts = [annotate(axes, label, point) for point, label in labels.items()]
    for text, anchor in zip(texts, anchors, strict=True):
        size = (
            np.array(Text.get_window_extent(text).size) * 72 / figure.dpi
        )  # without the leader line
        text.set_position(tuple(around.place(anchor, size)))
    return texts


def annotate(axes: Axes, name: str, point: tuple[float, float]) -> Annotation:
    """A label at its point, with a thin leader line that shows once the label moves."""
    return axes.annotate(
        name,
        point,
        xytext=(0, 0),
        textcoords="offset points",
        size=9,
        ha="center",
        va="center",
        arrowprops={"arrowstyle": "-", "color": "#767676", "linewidth": 0.6, "shrinkA": 0},
    )


def offsets(size: XY) -> Float[np.ndarray, "place xy"]:
    """Candidate offsets from a point to the centre of a label of this size (points)."""
    directions = np.stack((np.cos(ANGLES), np.sin(ANGLES)), axis=1)
    reach = np.array(DISTANCES_PT)[:, None, None] + size / 2
    return (reach * directions).reshape(-1, 2)


def centered_boxes(centers: Float[np.ndarray, "box xy"], size: XY) -> Boxes:
    """Boxes of one size around given centres."""
    return np.concatenate((centers - size / 2, centers + size / 2), axis=1)


def lines_between(
    starts: Float[np.ndarray, "line xy"], ends: Float[np.ndarray, "line xy"]
) -> Lines:
    """Straight lines as dots, spaced more closely than a letter is high."""
    return starts[:, None] + np.linspace(0, 1, 40)[:, None] * (ends - starts)[:, None]


def enters(lines: Lines, boxes: Boxes) -> Bool[np.ndarray, "line box"]:
    """Whether each line enters each box."""
    dots = lines[:, None]
    within = (dots > boxes[:, None, :2]) & (dots < boxes[:, None, 2:])
    return np.asarray(within.all(axis=-1).any(axis=-1))


def shared_area(
    boxes: Boxes, others: Float[np.ndarray, "other corners"]
) -> Float[np.ndarray, " box"]:
    """Total area that each box shares with all other boxes."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return (high - low).clip(0).prod(axis=2).sum(axis=1)
