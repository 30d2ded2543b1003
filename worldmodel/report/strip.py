"""Picture of a watched episode: key frames with trust maps, channel scores and levels over time.

Drawn with Pillow and Matplotlib. Memory does not grow with the number of frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8

from worldmodel.monitors.heatmaps import LEGEND_WIDTH, legend, overlay
from worldmodel.monitors.verdict import Level, Verdict
from worldmodel.report.format import seconds
from worldmodel.report.timeline import (
    MIN_CHOSEN,
    Frame,
    Keyframe,
    KeyframeChoice,
    Map,
    VerdictTimeline,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.ImageDraw import ImageDraw

Picture = UInt8[np.ndarray, "tall wide 3"]

LEVEL_COLORS = ((208, 208, 208), (230, 159, 0), (213, 94, 0), (0, 0, 0))
"""Colour of each `Level`; alarms use the palette of Okabe and Ito."""
NO_MAP = 225
"""Grey level of a picture without a trust map."""
MAX_COLUMNS = 12
MAX_WIDTH = 1700
"""Largest width of all columns together, unless fewer than `MIN_CHOSEN` fit (pixels)."""
MIN_WIDTH = 720
"""Smallest width of the plot (pixels)."""
CELL_HEIGHT = 128
"""Smaller frames are enlarged by the largest integer factor within this height (pixels)."""
GAP = 12
"""White space between pictures; holds the border of an alarm (pixels)."""
BORDER = 4
"""Width of the border of an alarm (pixels)."""
LEFT = 110
"""Left edge of the first column and of the plot (pixels)."""
LINE = 18
"""Height of a line of text (pixels)."""
FONT = 13
PLOT, TICKS, BAR = 190, 40, 20
"""Heights of the plot, its time labels and the level bar (pixels)."""
MAX_LABEL_ROWS = 5
"""Rows of text below the level bar."""
FAR = 10
"""If a score exceeds this many thresholds, the axis is logarithmic above the threshold."""


class StripView:
    """Collects the frames and verdicts of an episode and draws them at the end."""

    def __init__(self, path: Path, *, title: str, cameras: Sequence[str], rate_hz: float) -> None:
        """Start a view; `finish` writes it to `path`."""
        self.path, self.title, self.cameras, self.rate_hz = path, title, tuple(cameras), rate_hz
        self._timeline, self._choice = VerdictTimeline(), KeyframeChoice()

    def add(self, frame: Frame, verdict: Verdict) -> None:
        """Add the next frame."""
        self._choice.add(
            len(self._timeline.levels), Keyframe(frame.copy(), verdict.trust_map, verdict.level)
        )
        self._timeline.add(verdict)

    def finish(self) -> None:
        """Draw the picture and write it as PNG."""
        from PIL import Image

        keyframes = self._choice.chosen(MAX_COLUMNS)
        _, height, width, _ = keyframes[0].frame.shape
        fitting = MAX_WIDTH // (enlargement(height) * width + GAP)
        if fitting < len(keyframes):
            keyframes = self._choice.chosen(max(fitting, MIN_CHOSEN))
        upper = frame_rows(keyframes, self.cameras, self.rate_hz)
        plotted = max(upper.shape[1] - LEFT - LEGEND_WIDTH - GAP, MIN_WIDTH)
        parts = [
            heading(self.title, self._timeline, self.rate_hz, width=LEFT + plotted),
            upper,
            plot(self._timeline, list(keyframes), self.rate_hz, width=plotted),
            level_rows(self._timeline, width=plotted),
        ]
        Image.fromarray(stacked(parts)).save(self.path, format="PNG")


def enlargement(height: int) -> int:
    """Integer factor by which frames of this height are enlarged."""
    return max(1, CELL_HEIGHT // height)


def stacked(parts: list[np.ndarray]) -> Picture:
    """Pictures stacked vertically, padded with white at the right."""
    widest = max(part.shape[1] for part in parts) + GAP
    padded = [
        np.pad(part, ((0, 0), (0, widest - part.shape[1]), (0, 0)), constant_values=255)
        for part in parts
    ]
    return np.concatenate(padded)


def heading(title: str, timeline: VerdictTimeline, rate_hz: float, *, width: int) -> Picture:
    """Heading with the first alarm and its evidence; long lines end in dots."""
    from PIL import Image, ImageDraw

    frames = len(timeline.levels)
    lines = [f"{title}: {frames} frames, {seconds(frames, rate_hz)} s"]
    if timeline.first_alarm is None:
        lines.append("no alarm")
    else:
        t = timeline.first_alarm
        first = dict(timeline.changes)[t]
        lines.append(f"first alarm at frame {t} ({seconds(t, rate_hz)} s), {first}")
        lines.append(timeline.reasons)
    if timeline.undrawn:
        names = ", ".join(sorted(timeline.undrawn))
        lines.append(f"not drawn, no threshold above 0: {names}")
    canvas = Image.new("RGB", (width, GAP + LINE * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        place = GAP, GAP + row * LINE
        draw.text(place, shortened(draw, line, width - GAP), "black", font_size=FONT)
    return np.asarray(canvas)


def shortened(draw: ImageDraw, text: str, width: int) -> str:
    """The text, cut to a width in pixels; a cut text ends in dots."""
    if draw.textlength(text, font_size=FONT) <= width:
        return text
    while text and draw.textlength(f"{text}...", font_size=FONT) > width:
        text = text[:-1]
    return f"{text}..."


def frame_rows(
    keyframes: Mapping[int, Keyframe], cameras: Sequence[str], rate_hz: float
) -> Picture:
    """Per camera, a row of key frames and a row of trust maps; alarms have a border."""
    from PIL import Image, ImageDraw

    pictures = [keyframe_pictures(keyframe) for keyframe in keyframes.values()]
    height, width, _ = pictures[0][0].shape
    top, step = 2 * LINE + GAP, height + GAP
    right = LEFT + len(keyframes) * (width + GAP)
    canvas = Image.new("RGB", (right + LEGEND_WIDTH, top + len(pictures[0]) * step), "white")
    draw = ImageDraw.Draw(canvas)
    for column, ((t, keyframe), rows) in enumerate(zip(keyframes.items(), pictures, strict=True)):
        x, color = LEFT + column * (width + GAP), LEVEL_COLORS[keyframe.level]
        head = f"frame {t}, {seconds(t, rate_hz)} s\n{keyframe.level.name.lower()}"
        place = x + width / 2, LINE + GAP / 2
        draw.text(place, head, "black", font_size=FONT, anchor="mm", align="center")
        for row, picture in enumerate(rows):
            y = top + row * step
            if keyframe.level > Level.TRUST:
                outside = (x - BORDER, y - BORDER, x + width + BORDER - 1, y + height + BORDER - 1)
                draw.rectangle(outside, fill=color)
            canvas.paste(Image.fromarray(picture), (x, y))
    for view, camera in enumerate(cameras):
        for row, label in ((2 * view, camera), (2 * view + 1, "trust")):
            place = LEFT - GAP, top + row * step + height / 2
            label = shortened(draw, label, LEFT - 2 * GAP)
            draw.text(place, label, "black", font_size=FONT, anchor="rm")
        scale = Image.fromarray(legend(height, label="trust"))
        canvas.paste(scale, (right, top + (2 * view + 1) * step))
    return np.asarray(canvas)


def keyframe_pictures(keyframe: Keyframe) -> list[Picture]:
    """Enlarged frame and trust map of every camera in turn."""
    factor = enlargement(keyframe.frame.shape[1])
    maps = trust_of_views(keyframe.trust_map, len(keyframe.frame))
    pictures = []
    for frame, trust_map in zip(keyframe.frame, maps, strict=True):
        pictures += [frame, trust_picture(frame, trust_map)]
    return [picture.repeat(factor, axis=0).repeat(factor, axis=1) for picture in pictures]


def trust_of_views(trust_map: Map | None, views: int) -> list[np.ndarray | None]:
    """Trust map [h, w] per camera; a map without camera axis applies to each camera."""
    if trust_map is None:
        return [None] * views
    return list(np.broadcast_to(trust_map, (views, *trust_map.shape[-2:])))


def trust_picture(frame: Picture, trust_map: Float[np.ndarray, "h w"] | None) -> Picture:
    """Trust map over a frame; plain grey without a map."""
    return np.full_like(frame, NO_MAP) if trust_map is None else overlay(frame, trust_map)


def plot(
    timeline: VerdictTimeline, marked: Sequence[int], rate_hz: float, *, width: int
) -> Picture:
    """Plot of score / threshold per channel over time; triangles mark the frames in `marked`.

    The plot is `width` wide and starts `LEFT` from the left.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = math.ceil((len(timeline.ratios) + 1) / 6)
    above, wide = 26 * names + 10, LEFT + width + GAP
    tall = above + PLOT + TICKS
    figure = Figure(figsize=(wide / 100, tall / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((LEFT / wide, TICKS / tall, width / wide, PLOT / tall))
    draw_channels(axes, timeline)
    marks = axes.get_xaxis_transform()
    axes.plot(
        marked, [1.0] * len(marked), "v", color="#767676", clip_on=False, transform=marks, ms=4
    )
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.xaxis.set_major_formatter(lambda t, _: f"{t:g}\n{t / rate_hz:g} s")
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def draw_channels(axes: Axes, timeline: VerdictTimeline) -> None:
    """Draw the channels' lines, the threshold at 1 and the legend above the plot."""
    from worldmodel.report.figures import COLORS, DASHES, finish

    frames = len(timeline.levels)
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="threshold")
    for (name, values), color, dash in zip(timeline.ratios.items(), cycle(COLORS), cycle(DASHES)):
        dot = "." if frames <= 200 else None
        axes.plot(values, color=color, linestyle=dash, marker=dot, label=name, linewidth=1.4)
    highest = np.nanmax([1.0, *(np.nanmax(values) for values in timeline.ratios.values())])
    if highest > FAR:
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(-0.5, frames - 0.5)
    axes.set_ylim(top=max(axes.get_ylim()[1], 1.2))
    axes.set_ylabel("score / threshold")
    axes.tick_params(labelsize=9)
    if not timeline.ratios:
        middle = ((len(timeline.levels) - 1) / 2, 0.5)
        axes.annotate("no channel gave a score", middle, ha="center", va="center")
    finish(axes)
    axes.legend(frameon=False, ncols=6, loc="lower right", bbox_to_anchor=(1, 1.02), fontsize=9)


def level_bar(levels: Int[np.ndarray, " time"], width: int) -> UInt8[np.ndarray, " width 3"]:
    """Colour of the level per pixel; of the highest level where a pixel covers several frames."""
    starts = np.arange(width) * len(levels) // width
    return np.array(LEVEL_COLORS, np.uint8)[np.maximum.reduceat(levels, starts)]


def level_rows(timeline: VerdictTimeline, *, width: int) -> Picture:
    """Level bar aligned with the plot, and below it each change with its frame number."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (LEFT + width + GAP, BAR + (MAX_LABEL_ROWS + 2) * LINE), "white")
    draw = ImageDraw.Draw(canvas)
    bar = level_bar(np.array(timeline.levels), width)
    canvas.paste(Image.fromarray(np.repeat(bar[None], BAR, axis=0)), (LEFT, 0))
    draw.text((LEFT - GAP, BAR / 2), "level", "black", font_size=FONT, anchor="rm")
    taken: list[list[tuple[float, float]]] = [[] for _ in range(MAX_LABEL_ROWS)]
    labels, unnamed = [], 0
    for t, text in timeline.changes:
        start = LEFT + t * width / len(timeline.levels)
        label = shortened(draw, f"{t} {text}", width // 2)
        wide = draw.textlength(label, font_size=FONT) + 2
        left = min(start + 3, LEFT + width - wide)
        row = free_row(taken, left, left + wide + GAP)
        if row is None:
            unnamed += 1
            continue
        y = BAR + 2 + row * LINE
        draw.line([(start, BAR), (start, y + LINE - 4)], fill="#9A9A9A")
        labels.append((left, y, wide, label))
    for left, y, wide, label in labels:
        draw.rectangle((left - 1, y, left + wide, y + LINE - 3), fill="white")
        draw.text((left, y), label, "black", font_size=FONT)
    rows = sum(map(bool, taken))
    if unnamed:
        rows += 1
        note = f"and {unnamed} more changes (no space)"
        draw.text((LEFT, BAR + MAX_LABEL_ROWS * LINE), note, "#555555", font_size=FONT)
    return np.asarray(canvas)[: BAR + rows * LINE + GAP]


def free_row(taken: list[list[tuple[float, float]]], left: float, right: float) -> int | None:
    """First row with free space from `left` to `right`, which is then reserved; None if full."""
    for row, places in enumerate(taken):
        if all(right <= start or left >= end for start, end in places):
            places.append((left, right))
            return row
    return None
