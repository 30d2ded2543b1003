"""Self-contained HTML page of text, tables, figures and videos, for screen and print."""

from __future__ import annotations

import base64
import html
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from io import BytesIO
from pathlib import Path

import av
import matplotlib as mpl
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure as Drawing

Panel = UInt8[np.ndarray, "time height width 3"]

PANEL_HEIGHT = 256
"""Smaller panels are enlarged by the largest integer factor within this height (pixels)."""
NUMBER = re.compile(r"[-+]?\d|-$|n/a$|undefined$|nan$")
"""Start of a number in a table cell, or a placeholder for one; other columns are left-aligned."""
GAP = 8
"""Grey space between the panels of a video (pixels)."""

PAUSE_BUTTON = """<button type="button" id="pause">Pause videos</button>
<script>
addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("pause");
  const play = (playing) => {
    document.querySelectorAll("video").forEach((video) => playing ? video.play() : video.pause());
    button.textContent = playing ? "Pause videos" : "Play videos";
  };
  button.onclick = () => play(button.textContent === "Play videos");
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) play(false);
});
</script>"""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def to_html(self) -> str:
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table with named columns; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    """Floats are shown with three decimals, None as n/a; pass a string for any other format."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Table {self.caption!r} needs {len(self.columns)} cells, got {row}."
                )

    def to_text(self) -> str:
        """The table as text in aligned columns, for a terminal."""
        cells = [list(self.columns), *([cell_text(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in cells
        ]
        return "\n".join([self.caption, "", *lines])

    def to_html(self) -> str:
        cells = [[html.escape(cell_text(cell)) for cell in row] for row in self.rows]
        styles = [
            ' class="words"' if any(NUMBER.match(row[i]) is None for row in cells) else ""
            for i in range(len(self.columns))
        ]
        head = "".join(
            f'<th scope="col"{style}>{html.escape(name)}</th>'
            for name, style in zip(self.columns, styles, strict=True)
        )
        body = "".join(
            f'<tr><th scope="row">{first}</th>'
            + "".join(f"<td{s}>{cell}</td>" for cell, s in zip(rest, styles[1:], strict=True))
            + "</tr>"
            for first, *rest in cells
        )
        return (
            f'<div class="table" tabindex="0"><table><caption>{html.escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def cell_text(value: str | int | float | None) -> str:
    """Text of a table cell.

    >>> [cell_text(value) for value in ("nominal", 12, 0.98765, None)]
    ['nominal', '12', '0.988', 'n/a']
    """
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with a caption and a text alternative."""

    drawing: Drawing
    alt: str
    """Text alternative: the message of the drawing in words."""
    caption: str

    def to_html(self) -> str:
        buffer = BytesIO()
        # A fixed salt and no date make the bytes reproducible.
        with mpl.rc_context({"svg.hashsalt": "worldmodel", "svg.fonttype": "path"}):
            self.drawing.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
        source = data_uri("image/svg+xml", buffer.getvalue())
        return (
            f'<figure><img class="drawing" src="{source}" alt="{html.escape(self.alt)}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True, kw_only=True)
class Video:
    """Panels of equal size, side by side in one looped H.264 video so that they stay in sync."""

    panels: Mapping[str, Panel]
    """Heading -> RGB frames."""
    rate_hz: float
    """Frames per second of the source."""
    caption: str

    def __post_init__(self) -> None:
        shapes = {name: frames.shape for name, frames in self.panels.items()}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"`panels` must share one shape, got {shapes}.")

    def to_html(self) -> str:
        frames = side_by_side(list(self.panels.values()))
        source = data_uri("video/mp4", encode_mp4(frames, self.rate_hz))
        headings = "".join(f"<span>{html.escape(name)}</span>" for name in self.panels)
        label = html.escape(f"{', '.join(self.panels)}: {self.caption}")
        height, width = frames.shape[1:3]
        return (
            f'<figure class="video" style="max-width:{width}px">'
            f'<div class="panels" aria-hidden="true">{headings}</div>'
            f'<video src="{source}" width="{width}" height="{height}" aria-label="{label}" '
            "autoplay loop muted playsinline></video>"
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


Block = Text | Table | Figure | Video


@dataclass(frozen=True)
class Section:
    """A heading and its content."""

    title: str
    blocks: Sequence[Block]


def data_uri(media_type: str, content: bytes) -> str:
    """Data URI that embeds the content in the page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def side_by_side(panels: Sequence[Panel]) -> UInt8[np.ndarray, "time rows columns 3"]:
    """Panels in one row, enlarged without smoothing and cropped to even sides."""
    time, height = panels[0].shape[:2]
    factor = max(1, PANEL_HEIGHT // height)
    enlarged = [panel.repeat(factor, axis=1).repeat(factor, axis=2) for panel in panels]
    gap = np.full((time, factor * height, GAP, 3), 128, np.uint8)
    row = np.concatenate([part for panel in enlarged for part in (gap, panel)][1:], axis=2)
    return row[:, : row.shape[1] // 2 * 2, : row.shape[2] // 2 * 2]


def encode_mp4(frames: Panel, rate_hz: float) -> bytes:
    """Encode frames of even height and width as H.264 (yuv420p, which every browser plays)."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate_hz).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "medium"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def page(title: str, sections: Sequence[Section]) -> str:
    """HTML text of the page."""
    style = resources.files("worldmodel.report").joinpath("report.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#s{i}">{html.escape(section.title)}</a></li>'
        for i, section in enumerate(sections)
    )
    has_videos = any(isinstance(block, Video) for section in sections for block in section.blocks)
    body = "".join(
        f'<section id="s{i}"><h2>{html.escape(section.title)}</h2>'
        + "".join(block.to_html() for block in section.blocks)
        + "</section>"
        for i, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1></header>"
        f'<nav aria-label="Sections"><ul>{links}</ul>{PAUSE_BUTTON * has_videos}</nav>'
        f"<main>{body}</main></body></html>\n"
    )


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page to `path` in one step and return its absolute path."""
    path = Path(path).resolve()
    text = page(title, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".report-") as folder:
        draft = Path(folder) / path.name
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    return path
