"""Heatmap files of a rollout log: a contact sheet (PNG) and a video (mp4) per rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from tqdm import tqdm

from worldmodel.calibration.features import MONITOR_EPSILON
from worldmodel.datasets.file_names import safe_file_name
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.monitors.heatmaps import LEGEND_WIDTH, heatmap, legend
from worldmodel.report.html import Panel, encode_mp4
from worldmodel.report.rollout_page import readable_rollouts, rollout_video
from worldmodel.report.strip import shortened
from worldmodel.rollouts.log import LoggedRollout
from worldmodel.rollouts.open_loop import EPSILONS

Picture = UInt8[np.ndarray, "height width 3"]
Sheet = UInt8[np.ndarray, "tall wide 3"]

CELL_HEIGHT = 128
"""Smaller frames are enlarged by the largest integer factor within this height (pixels)."""
GAP = 4
"""White space between frames (pixels)."""
LINE = 20
"""Height of a line of text (pixels)."""
LABEL_WIDTH = 92
"""Space for the label at the left of a row (pixels)."""
MAX_COLUMNS = 8
"""Imagined frames on a contact sheet, evenly spaced over the first segment."""
NOT_IMAGINED = 225
"""Grey level of frames without a prediction, which have no confidence."""
UNIT = f"confidence that the error is at most {MONITOR_EPSILON} latent standard deviations"


def write_heatmaps(log: RolloutLog, folder: Path) -> int:
    """Write `0000-name.png` and `0000-name.mp4` per rollout and return the number of rollouts.

    Rollouts without an imagined frame are left out.

    Raises:
        ValueError: if the log cannot be shown, or holds no imagined frame.
    """
    rollouts = [r for r in readable_rollouts(log) if r.horizon.any()]
    if not rollouts:
        raise ValueError(f"{log.path} holds no imagined frame, so it has no confidence to show.")
    if not any(rollout.has_confidence for rollout in rollouts):
        raise ValueError(f"{log.path} has no confidence to show: its model states none.")
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, rollout in enumerate(tqdm(rollouts, "heatmaps", unit="rollout")):
        name = safe_file_name(rollout.name.replace("/", "-"))
        stem = folder / f"{index:04d}-{name}"
        panels = confidence_panels(rollout)
        Image.fromarray(contact_sheet(rollout, panels)).save(stem.with_name(f"{stem.name}.png"))
        mp4 = encode_mp4(labelled_video(rollout, panels), log.attributes["rate_hz"])
        stem.with_name(f"{stem.name}.mp4").write_bytes(mp4)
    return len(rollouts)


def confidence_panels(rollout: LoggedRollout) -> dict[str, Panel]:
    """Panels of the report's video, and confidence alone; grey where nothing was imagined."""
    report_panels = dict(rollout_video(rollout, rate_hz=1.0).panels)
    confidence = rollout.confidence[..., EPSILONS.index(MONITOR_EPSILON)].float().numpy()
    height, width = rollout.frames.shape[2:4]
    panels = {
        "real": report_panels["real"],
        "imagined": report_panels["imagined"],
        "confidence\noverlay": report_panels["confidence"],
        "confidence": heatmap_rows(confidence, height, width),
    }
    for name in list(panels)[1:]:
        panels[name] = panels[name].copy()
        panels[name][rollout.horizon == 0] = NOT_IMAGINED
    if "monitor's trust" in report_panels:
        panels["monitor's\ntrust"] = report_panels["monitor's trust"]
    return panels


def heatmap_rows(
    confidence: Float[np.ndarray, "time view channel h w"], height: int, width: int
) -> UInt8[np.ndarray, "time height columns 3"]:
    """Heatmaps of every frame, all cameras in one row."""
    heatmaps = [[heatmap(view, height, width) for view in views] for views in confidence]
    return rearrange(np.array(heatmaps), "t v h w c -> t h (v w) c")


def contact_sheet(rollout: LoggedRollout, panels: Mapping[str, Panel]) -> Sheet:
    """Contact sheet: the last real frame and imagined frames after it, one row per panel."""
    first = int(np.flatnonzero(rollout.horizon)[0])
    length = int(np.argmax(np.append(np.diff(rollout.horizon[first:]), 0) != 1)) + 1
    number = min(length, MAX_COLUMNS)
    imagined = np.unique(np.linspace(first, first + length - 1, number).round().astype(int))
    times = [first - 1, *imagined.tolist()]
    columns = ["last real"] + [f"{rollout.horizon[t]} ahead" for t in imagined]
    cells = [[frames[t] for t in times] for frames in panels.values()]
    return grid(cells, rows=list(panels), columns=columns, caption=f"{rollout.name}\n{UNIT}")


def labelled_video(
    rollout: LoggedRollout, panels: Mapping[str, Panel]
) -> UInt8[np.ndarray, "time tall wide 3"]:
    """Video of all panels side by side, with headings, legend and frame number."""
    names = [name.replace("\n", " ") for name in panels]
    pictures = []
    for t, horizon in enumerate(rollout.horizon):
        kind = f"imagined, horizon {horizon}" if horizon else "real"
        cells = [[frames[t] for frames in panels.values()]]
        caption = f"frame {t}, {kind}"
        pictures.append(grid(cells, rows=[""], columns=names, caption=caption))
    return np.stack(pictures)


def grid(
    cells: Sequence[Sequence[Picture]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    caption: str,
) -> Sheet:
    """Grid of equally sized pictures with labels, a caption and the legend.

    Both sides are even, as H.264 requires.
    """
    from PIL import Image, ImageDraw

    factor = max(1, CELL_HEIGHT // cells[0][0].shape[0])
    height, width = (factor * side for side in cells[0][0].shape[:2])
    left = LABEL_WIDTH if any(rows) else GAP
    right, bottom = left + len(columns) * (width + GAP), LINE + len(rows) * (height + GAP)
    lines = caption.split("\n")
    size = right + LEGEND_WIDTH, bottom + len(lines) * LINE
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
    for i, line in enumerate(lines):
        text = shortened(draw, line, size[0] - left)
        draw.text((left, bottom + (i + 0.5) * LINE), text, "black", font_size=13, anchor="lm")
    tall = min(len(rows), 2) * (height + GAP) - GAP  # beside the last rows, which show confidence
    canvas.paste(Image.fromarray(legend(tall)), (right, bottom - GAP - tall))
    return np.asarray(canvas)
