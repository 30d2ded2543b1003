"""Names beside the points of a scatter plot, none over another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.transforms import Affine2D, Bbox

DISTANCES_PT = (6, 12, 20, 30, 42, 56, 72, 90, 110, 132)
"""How far from its point a name is tried (points)."""
MARKER_PT = 4
"""Half-width of the square that a marker keeps free (points)."""
DIRECTIONS = np.linspace(0, 2 * np.pi, 12, endpoint=False)


@dataclass(frozen=True)
class Surroundings:
    """What is drawn already, in points."""

    inside: Bbox
    """The axes."""
    taken: list[Bbox]
    """Markers and names: never to be covered."""
    lines: list[Path]
    """Better neither covered by a name nor drawn over one."""

    def cost(self, box: Bbox, leader: Path) -> float:
        """How bad a place is: hiding something counts most, then crossings, then distance."""
        outside = box.width * box.height - shared_area(box, [self.inside])
        hidden = outside + shared_area(box, self.taken)
        crossings = sum(line.intersects_bbox(box) for line in self.lines)
        crossings += sum(leader.intersects_bbox(other) for other in self.taken)
        return (
            100 * hidden + 20 * crossings + float(np.linalg.norm(np.ptp(leader.vertices, axis=0)))
        )


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
        inside=Bbox(axes.bbox.get_points() * 72 / figure.dpi),
        taken=[centered_box(anchor, np.full(2, 2.0 * MARKER_PT)) for anchor in anchors],
        lines=[Path(to_points.transform(ends)) for ends in lines],
    )
    texts = [annotate(axes, label, point) for point, label in labels.items()]
    for text, anchor in zip(texts, anchors, strict=True):
        size = np.array(text.get_window_extent().size) * 72 / figure.dpi
        text.set_position(place(anchor, size, around))
    return texts


def place(
    anchor: Float[np.ndarray, " xy"], size: Float[np.ndarray, " xy"], around: Surroundings
) -> tuple[float, float]:
    """Offset of the best place for a name of this size, which is added to what is drawn."""

    def cost(offset: Float[np.ndarray, " xy"]) -> float:
        return around.cost(centered_box(anchor + offset, size), leader(offset))

    def leader(offset: Float[np.ndarray, " xy"]) -> Path:
        return Path([anchor, anchor + offset])

    best = min(offsets(size), key=cost)
    around.taken.append(centered_box(anchor + best, size))
    around.lines.append(leader(best))
    return float(best[0]), float(best[1])


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


def offsets(size: Float[np.ndarray, " xy"]) -> Iterator[Float[np.ndarray, " xy"]]:
    """From a point to where the centre of a name of this size may stand (points)."""
    for distance in DISTANCES_PT:
        for angle in DIRECTIONS:
            yield (distance + size / 2) * np.array([np.cos(angle), np.sin(angle)])


def centered_box(center: Float[np.ndarray, " xy"], size: Float[np.ndarray, " xy"]) -> Bbox:
    """A box around its centre."""
    return Bbox([center - size / 2, center + size / 2])


def shared_area(box: Bbox, others: Sequence[Bbox]) -> float:
    """Area of the box that others cover, counted once for each of them."""
    shared = [Bbox.intersection(box, other) for other in others]
    return sum((part.width * part.height for part in shared if part is not None), start=0.0)
