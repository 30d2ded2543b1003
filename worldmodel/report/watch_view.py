"""A watched episode to look at, written frame by frame: a Rerun recording, or a picture without it.

Rerun (https://rerun.io) is an extra: pip install 'worldmodel[view]'.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from worldmodel.monitors.verdict import Verdict
from worldmodel.report.strip import StripView, trust_of_views, trust_picture
from worldmodel.report.timeline import Frame, differs, ratio, reasons, said

Show = Callable[[Frame, Verdict], None]
"""Takes the next frame of an episode and the verdict on it."""

SEVERITIES = ("INFO", "WARN", "ERROR", "CRITICAL")
"""Rerun's names for text of each `Level`."""
MAX_PART = 200
"""Bytes of a file's or folder's name, which file systems limit."""


@contextmanager
def open_view(
    folder: Path, episode: str, *, cameras: Sequence[str], rate_hz: float
) -> Iterator[Show]:
    """Shows an episode in `folder`, as `episode.rrd` if Rerun is installed, else `episode.png`.

    The file is there once the block is left, and not if it is left by an error.
    """
    kind = RerunView if has_rerun() else StripView
    path = view_file(folder, episode, ".rrd" if has_rerun() else ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        view = kind(part, title=episode, cameras=cameras, rate_hz=rate_hz)
        yield view.add
        view.finish()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def has_rerun() -> bool:
    """Whether Rerun is installed."""
    return find_spec("rerun") is not None


def view_file(folder: Path, episode: str, suffix: str) -> Path:
    """The file for an episode, in `folder` whatever its name; "/" in it makes folders.

    >>> view_file(Path("views"), "train/../0", ".png").as_posix()
    'views/train/%2E./0.png'
    """
    *parents, name = [safe_part(part) for part in episode.split("/")]
    return Path(folder, *parents, name + suffix)


def safe_part(part: str) -> str:
    """A name for a file or folder, never hidden, empty or too long; different for every `part`."""
    safe = re.sub(r"[^\w .,+=@()-]", lambda found: quote(found[0], safe=""), part) or "%"
    safe = re.sub(r"^\.", "%2E", safe)
    if len(safe.encode()) <= MAX_PART:
        return safe
    return f"{safe[:40]}%{hashlib.sha256(part.encode()).hexdigest()}"


class RerunView:
    """Writes frames, trust, channels and verdicts to a Rerun recording as they come.

    Two timelines: `frame`, and `time` in seconds.
    """

    def __init__(self, path: Path, *, title: str, cameras: Sequence[str], rate_hz: float) -> None:
        """Open the recording at `path`."""
        import rerun

        self._rerun: Any = rerun
        self.cameras, self.rate_hz = tuple(cameras), rate_hz
        self._recording = rerun.RecordingStream("worldmodel watch")
        self._recording.save(path, default_blueprint=self._blueprint())
        self._recording.send_recording_name(title)
        self._num_frames = 0
        self._last: Verdict | None = None
        self._drawn: set[tuple[str, ...]] = set()

    def _blueprint(self) -> Any:
        """Pictures at the left; at the right channels, level and words."""
        import rerun.blueprint as blueprint

        pictures = [
            blueprint.Spatial2DView(origin=f"/{kind}/{name}", name=f"{kind} {name}")
            for name in map(self._rerun.escape_entity_path_part, self.cameras)
            for kind in ("camera", "trust")
        ]
        courses = blueprint.Vertical(
            blueprint.TimeSeriesView(
                contents=["/ratio/**", "/threshold"], name="scores in thresholds"
            ),
            blueprint.TimeSeriesView(origin="/level", name="level"),
            blueprint.TextLogView(origin="/verdict", name="verdicts"),
            row_shares=[2, 1, 1],
        )
        return blueprint.Horizontal(blueprint.Grid(*pictures, grid_columns=2), courses)

    def add(self, frame: Frame, verdict: Verdict) -> None:
        """Write the next frame."""
        t = self._num_frames
        self._recording.set_time("frame", sequence=t)
        self._recording.set_time("time", duration=t / self.rate_hz)
        self._add_pictures(frame, verdict)
        self._add_channels(verdict)
        self._log(["level"], self._rerun.Scalars(float(verdict.level)))
        if differs(verdict, self._last):
            text = ". ".join(filter(None, [said(verdict), reasons(verdict)]))
            severity = SEVERITIES[verdict.level]
            self._log(["verdict"], self._rerun.TextLog(text, level=severity))
        self._num_frames, self._last = t + 1, verdict

    def _add_pictures(self, frame: Frame, verdict: Verdict) -> None:
        maps = trust_of_views(verdict.trust_map, len(frame))
        for camera, picture, trust_map in zip(self.cameras, frame, maps, strict=True):
            self._log(["camera", camera], self._rerun.Image(picture))
            self._log(["trust", camera], self._rerun.Image(trust_picture(picture, trust_map)))

    def _add_channels(self, verdict: Verdict) -> None:
        """Scores and thresholds, and the one over the other; lines end where there is no score."""
        figures: dict[tuple[str, ...], float | None] = {("threshold",): 1.0}
        for name, evidence in verdict.evidence.items():
            figures["ratio", name] = ratio(evidence)
            figures["channel", name, "score"] = evidence.score
            figures["channel", name, "threshold"] = evidence.threshold
        view_mask = {p: x for p, x in figures.items() if x is not None and math.isfinite(x)}
        for path, figure in view_mask.items():
            self._log([*path], self._rerun.Scalars(figure))
        for path in self._drawn - view_mask.keys():
            self._log([*path], self._rerun.Clear(recursive=False))
        self._drawn = set(view_mask)

    def _log(self, path: list[str], entity: Any) -> None:
        self._recording.log(path, entity)

    def finish(self) -> None:
        """Close the recording."""
        self._recording.flush()
        self._recording.disconnect()
