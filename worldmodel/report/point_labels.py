"""Names beside the points of a scatter plot, none over another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Affine2D

DISTANCES_PT = (6, 12, 20, 30, 42, 56, 72, 90, 110, 132)
"""How far from its point a name is tried (points)."""
ANGLES = np.linspace(0, 2 * np.pi, 12, endpoint=False)
MARKER_PT = 4.0
"""Half-width of the square that a marker keeps free (points)."""

XY = Float[np.ndarray, " xy"]
Boxes = Float[np.ndarray, "box corners"]  # left, bottom, right, top
Lines = Float[np.ndarray, "line dot xy"]


@dataclass
class Surroundings:
    """What is drawn already, in points."""

    inside: Float[np.ndarray, "1 corners"]
    """The axes."""
    taken: Boxes
    """Markers and names: never to be covered."""
    lines: Lines
    """Better neither covered by a name nor drawn over one."""

    def place(self, anchor: XY, size: XY) -> XY:
        """Offset of the best place for a name of this size, which is taken from now on.

        Area hidden or outside counts most, then lines crossed, then distance.
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
    """Write each name near its point: inside the axes, off markers and names, off lines if it can.

    Points that coincide share one label. `points` and the straight `lines` are in data units.
    Limits and axis labels must be set before.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # fixes where the axes lie
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
        size = np.array(Text.get_window_extent(text).size) * 72 / figure.dpi  # without its line
        text.set_position(tuple(around.place(anchor, size)))
    return texts


def annotate(axes: Axes, name: str, point: tuple[float, float]) -> Annotation:
    """The name on its point, with a thin line that shows once the name is moved away."""
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
    """From a point to where the centre of a name of this size may stand (points)."""
    directions = np.stack((np.cos(ANGLES), np.sin(ANGLES)), axis=1)
    reach = np.array(DISTANCES_PT)[:, None, None] + size / 2
    return (reach * directions).reshape(-1, 2)


def centered_boxes(centers: Float[np.ndarray, "box xy"], size: XY) -> Boxes:
    """Boxes of one size around their centres."""
    return np.concatenate((centers - size / 2, centers + size / 2), axis=1)


def lines_between(
    starts: Float[np.ndarray, "line xy"], ends: Float[np.ndarray, "line xy"]
) -> Lines:
    """Straight lines as dots, denser than letters are high."""
    return starts[:, None] + np.linspace(0, 1, 40)[:, None] * (ends - starts)[:, None]


def enters(lines: Lines, boxes: Boxes) -> Bool[np.ndarray, "line box"]:
    """Which line enters which box."""
    dots = lines[:, None]
    within = (dots > boxes[:, None, :2]) & (dots < boxes[:, None, 2:])
    return np.asarray(within.all(axis=-1).any(axis=-1))


def shared_area(
    boxes: Boxes, others: Float[np.ndarray, "other corners"]
) -> Float[np.ndarray, " box"]:
    """Area of each box that others cover, counted once for each of them."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return (high - low).clip(0).prod(axis=2).sum(axis=1)
