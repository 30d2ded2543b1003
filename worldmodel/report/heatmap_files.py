"""Heatmaps of a rollout log as files: a contact sheet (PNG) and a film (mp4) of every rollout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from tqdm import tqdm

from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.monitors.heatmaps import LEGEND_WIDTH, heatmap, legend
from worldmodel.report.html import Panel, encode_mp4
from worldmodel.report.rollout_page import film, readable_rollouts
from worldmodel.rollouts.log import LoggedRollout
from worldmodel.rollouts.open_loop import EPSILONS

Picture = UInt8[np.ndarray, "height width 3"]
Sheet = UInt8[np.ndarray, "tall wide 3"]

CELL_HEIGHT = 128
"""Smaller pictures are enlarged by the greatest whole factor that keeps them below (pixels)."""
GAP = 4
"""White between pictures (pixels)."""
LINE = 20
"""Height of a line of text (pixels)."""
LABEL_WIDTH = 92
"""Left of each row (pixels)."""
MAX_COLUMNS = 8
"""Imagined frames on a sheet, evenly spaced over the first stretch."""
MAX_NAME = 120
"""Letters of a rollout's name in its files' names, which file systems limit."""
NOT_IMAGINED = 225
"""Grey of cells in which nothing was imagined: there is no confidence to show."""
UNIT = f"confidence that the error is at most {MONITOR_EPSILON} latent standard deviations"


def write_heatmaps(log: RolloutLog, folder: Path) -> int:
    """Write `0000-name.png` and `0000-name.mp4` for every rollout; returns how many there are.

    Rollouts of which nothing was imagined are left out.

    Raises:
        ValueError: if the log cannot be shown, or nothing in it was imagined.
    """
    rollouts = [r for r in readable_rollouts(log) if r.horizon.any()]
    if not rollouts:
        raise ValueError(f"Nothing in {log.path} was imagined, so there is no confidence to show.")
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, rollout in enumerate(tqdm(rollouts, "heatmaps", unit="rollout")):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", rollout.name)[:MAX_NAME]
        stem = folder / f"{index:04d}-{name}"
        panels = confidence_panels(rollout)
        Image.fromarray(contact_sheet(rollout, panels)).save(stem.with_name(f"{stem.name}.png"))
        mp4 = encode_mp4(labelled_film(rollout, panels), log.attributes["rate_hz"])
        stem.with_name(f"{stem.name}.mp4").write_bytes(mp4)
    return len(rollouts)


def confidence_panels(rollout: LoggedRollout) -> dict[str, Panel]:
    """What the report's film shows, and confidence alone; grey where nothing was imagined."""
    shown = dict(film(rollout, rate_hz=1.0).panels)
    confidence = rollout.confidence[..., EPSILONS.index(MONITOR_EPSILON)].float().numpy()
    height, width = rollout.frames.shape[2:4]
    panels = {
        "real": shown["real"],
        "imagined": shown["imagined"],
        "confidence\nover it": shown["confidence"],
        "confidence": alone(confidence, height, width),
    }
    for name in list(panels)[1:]:
        panels[name] = panels[name].copy()
        panels[name][rollout.horizon == 0] = NOT_IMAGINED
    if "monitor's trust" in shown:
        panels["monitor's\ntrust"] = shown["monitor's trust"]
    return panels


def alone(
    confidence: Float[np.ndarray, "time view channel h w"], height: int, width: int
) -> UInt8[np.ndarray, "time height columns 3"]:
    """Confidence of every frame, all views in one row."""
    views = [[heatmap(view, height, width) for view in moment] for moment in confidence]
    return rearrange(np.array(views), "t v h w c -> t h (v w) c")


def contact_sheet(rollout: LoggedRollout, panels: Mapping[str, Panel]) -> Sheet:
    """The last real frame and imagined ones after it, one row per panel."""
    first = int(np.flatnonzero(rollout.horizon)[0])
    length = int(np.argmax(np.append(np.diff(rollout.horizon[first:]), 0) != 1)) + 1
    number = min(length, MAX_COLUMNS)
    imagined = np.unique(np.linspace(first, first + length - 1, number).round().astype(int))
    times = [first - 1, *imagined.tolist()]
    columns = ["last real"] + [f"{rollout.horizon[t]} ahead" for t in imagined]
    cells = [[frames[t] for t in times] for frames in panels.values()]
    return grid(cells, rows=list(panels), columns=columns, caption=f"{UNIT}; {rollout.name}")


def labelled_film(
    rollout: LoggedRollout, panels: Mapping[str, Panel]
) -> UInt8[np.ndarray, "time tall wide 3"]:
    """All panels side by side over time, with headings, legend and place in the rollout."""
    names = [name.replace("\n", " ") for name in panels]
    pictures = []
    for t, horizon in enumerate(rollout.horizon):
        place = f"{horizon} after the last real one" if horizon else "real"
        cells = [[frames[t] for frames in panels.values()]]
        caption = f"frame {t}, {place}"
        pictures.append(grid(cells, rows=[""], columns=names, caption=caption))
    return np.stack(pictures)


def grid(
    cells: Sequence[Sequence[Picture]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    caption: str,
) -> Sheet:
    """Pictures of one size in rows and columns with their labels, a caption and the legend.

    Both sides are even, as films need.
    """
    from PIL import Image, ImageDraw

    factor = max(1, CELL_HEIGHT // cells[0][0].shape[0])
    height, width = (factor * side for side in cells[0][0].shape[:2])
    left = LABEL_WIDTH if any(rows) else GAP
    right, bottom = left + len(columns) * (width + GAP), LINE + len(rows) * (height + GAP)
    size = right + LEGEND_WIDTH, bottom + LINE
    canvas = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (label, row) in enumerate(zip(rows, cells, strict=True)):
        y = LINE + i * (height + GAP)
        draw.text(
            (left - 6, y + height / 2), label, "black", font_size=13, anchor="rm", align="right"
        )
        for j, cell in enumerate(row):
            enlarged = cell.repeat(factor, axis=0).repeat(factor, axis=1)
            canvas.paste(Image.fromarray(enlarged), (left + j * (width + GAP), y))
    for j, label in enumerate(columns):
        place = left + j * (width + GAP) + width / 2, LINE / 2
        draw.text(place, label, "black", font_size=13, anchor="mm")
    draw.text((left, bottom + LINE / 2), caption, "black", font_size=13, anchor="lm")
    tall = min(len(rows), 2) * (height + GAP) - GAP  # beside confidence, in the last rows
    canvas.paste(Image.fromarray(legend(tall)), (right, bottom - GAP - tall))
    return np.asarray(canvas)
