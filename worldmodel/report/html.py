"""One self-contained HTML page: text, tables, figures and videos, readable offline and on paper."""

from __future__ import annotations

import base64
import html
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
"""Smaller panels are enlarged by the greatest whole factor that keeps them below (pixels)."""
GAP = 8
"""Grey between the panels of a video (pixels)."""

PAUSE_BUTTON = """<button type="button" id="pause">Pause films</button>
<script>
addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("pause");
  const play = (playing) => {
    document.querySelectorAll("video").forEach((film) => playing ? film.play() : film.pause());
    button.textContent = playing ? "Pause films" : "Play films";
  };
  button.onclick = () => play(button.textContent === "Play films");
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
    """Rows under named columns; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]
    """Numbers are shown with three decimals, None as n/a. Pass text for any other form."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Table {self.caption!r} needs {len(self.columns)} cells, got {row}."
                )

    def to_text(self) -> str:
        """The table for a terminal, in aligned columns."""
        cells = [list(self.columns), *([cell_text(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in cells
        ]
        return "\n".join([self.caption, "", *lines])

    def to_html(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = "".join(
            f'<tr><th scope="row">{html.escape(cell_text(first))}</th>'
            + "".join(f"<td>{html.escape(cell_text(cell))}</td>" for cell in rest)
            + "</tr>"
            for first, *rest in self.rows
        )
        return (
            f'<div class="table" tabindex="0"><table><caption>{html.escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


def cell_text(value: str | int | float | None) -> str:
    """What a table shows for a value.

    >>> [cell_text(value) for value in ("nominal", 12, 0.98765, None)]
    ['nominal', '12', '0.988', 'n/a']
    """
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing, with the sentence that stands in for it where it cannot be seen."""

    drawing: Drawing
    alt: str
    """What a reader who cannot see the drawing should take from it."""
    caption: str

    def to_html(self) -> str:
        buffer = BytesIO()
        # A fixed salt and no date: the same drawing gives the same bytes.
        with mpl.rc_context({"svg.hashsalt": "worldmodel", "svg.fonttype": "path"}):
            self.drawing.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
        source = data_uri("image/svg+xml", buffer.getvalue())
        return (
            f'<figure><img class="drawing" src="{source}" alt="{html.escape(self.alt)}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True, kw_only=True)
class Video:
    """Panels of equal size playing side by side in one looped H.264 film, so never out of step."""

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
        film = side_by_side(list(self.panels.values()))
        source = data_uri("video/mp4", encode_mp4(film, self.rate_hz))
        headings = "".join(f"<span>{html.escape(name)}</span>" for name in self.panels)
        label = html.escape(f"{', '.join(self.panels)}: {self.caption}")
        height, width = film.shape[1:3]
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
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


def data_uri(media_type: str, content: bytes) -> str:
    """The content itself, in the place of an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def side_by_side(panels: Sequence[Panel]) -> UInt8[np.ndarray, "time rows columns 3"]:
    """The panels in one row, enlarged without smoothing and trimmed to even sides."""
    time, height = panels[0].shape[:2]
    factor = max(1, PANEL_HEIGHT // height)
    enlarged = [panel.repeat(factor, axis=1).repeat(factor, axis=2) for panel in panels]
    gap = np.full((time, factor * height, GAP, 3), 128, np.uint8)
    row = np.concatenate([part for panel in enlarged for part in (gap, panel)][1:], axis=2)
    return row[:, : row.shape[1] // 2 * 2, : row.shape[2] // 2 * 2]


def encode_mp4(frames: Panel, rate_hz: float) -> bytes:
    """The frames as H.264 in an mp4, colours halved as every browser wants; sides must be even."""
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
    """The whole page as text."""
    style = resources.files("worldmodel.report").joinpath("report.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#s{i}">{html.escape(section.title)}</a></li>'
        for i, section in enumerate(sections)
    )
    has_films = any(isinstance(block, Video) for section in sections for block in section.blocks)
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
        f'<nav aria-label="Sections"><ul>{links}</ul>{PAUSE_BUTTON * has_films}</nav>'
        f"<main>{body}</main></body></html>\n"
    )


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page to `path`, whole or not at all, and return its absolute path."""
    path = Path(path).resolve()
    text = page(title, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".report-") as folder:
        draft = Path(folder) / path.name
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    return path
