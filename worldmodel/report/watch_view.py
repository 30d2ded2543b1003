"""View of a watched episode, written frame by frame: a Rerun recording, or a picture without Rerun.

Rerun (https://rerun.io) is an extra: pip install 'worldmodel[view]'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from worldmodel.datasets.file_names import safe_path
from worldmodel.monitors.verdict import Verdict
from worldmodel.report.strip import StripView, trust_of_views, trust_picture
from worldmodel.report.timeline import Frame, differs, evidence_text, ratio, verdict_text

Show = Callable[[Frame, Verdict], None]
"""Adds the next frame of an episode and its verdict to the view."""

SEVERITIES = ("INFO", "WARN", "ERROR", "CRITICAL")
"""Rerun's log level of each `Level`."""


@contextmanager
def open_view(
    folder: Path, episode: str, *, cameras: Sequence[str], rate_hz: float
) -> Iterator[Show]:
    """Write the view of an episode: `episode.rrd` if Rerun is installed, else `episode.png`.

    The file appears in `folder` when the block ends, and not if the block raises.
    """
    kind = RerunView if has_rerun() else StripView
    path = safe_path(folder, episode, ".rrd" if has_rerun() else ".png")
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


class RerunView:
    """Rerun recording of frames, trust maps, channels and verdicts.

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
        """Default layout: images at the left; channels, level and verdicts at the right."""
        import rerun.blueprint as blueprint

        images = [
            blueprint.Spatial2DView(origin=f"/{kind}/{name}", name=f"{kind} {name}")
            for name in map(self._rerun.escape_entity_path_part, self.cameras)
            for kind in ("camera", "trust")
        ]
        plots = blueprint.Vertical(
            blueprint.TimeSeriesView(
                contents=["/ratio/**", "/threshold"], name="score / threshold"
            ),
            blueprint.TimeSeriesView(origin="/level", name="level"),
            blueprint.TextLogView(origin="/verdict", name="verdicts"),
            row_shares=[2, 1, 1],
        )
        return blueprint.Horizontal(blueprint.Grid(*images, grid_columns=2), plots)

    def add(self, frame: Frame, verdict: Verdict) -> None:
        """Write the next frame."""
        t = self._num_frames
        self._recording.set_time("frame", sequence=t)
        self._recording.set_time("time", duration=t / self.rate_hz)
        self._add_images(frame, verdict)
        self._add_channels(verdict)
        self._log(["level"], self._rerun.Scalars(float(verdict.level)))
        if differs(verdict, self._last):
            text = ". ".join(filter(None, [verdict_text(verdict), evidence_text(verdict)]))
            severity = SEVERITIES[verdict.level]
            self._log(["verdict"], self._rerun.TextLog(text, level=severity))
        self._num_frames, self._last = t + 1, verdict

    def _add_images(self, frame: Frame, verdict: Verdict) -> None:
        maps = trust_of_views(verdict.trust_map, len(frame))
        for camera, image, trust_map in zip(self.cameras, frame, maps, strict=True):
            self._log(["camera", camera], self._rerun.Image(image))
            self._log(["trust", camera], self._rerun.Image(trust_picture(image, trust_map)))

    def _add_channels(self, verdict: Verdict) -> None:
        """Scores, thresholds and their ratios; a line ends where its channel has no score."""
        scalars: dict[tuple[str, ...], float | None] = {("threshold",): 1.0}
        for name, evidence in verdict.evidence.items():
            scalars["ratio", name] = ratio(evidence)
            scalars["channel", name, "score"] = evidence.score
            scalars["channel", name, "threshold"] = evidence.threshold
        finite = {p: x for p, x in scalars.items() if x is not None and math.isfinite(x)}
        for path, value in finite.items():
            self._log([*path], self._rerun.Scalars(value))
        for path in self._drawn - finite.keys():
            self._log([*path], self._rerun.Clear(recursive=False))
        self._drawn = set(finite)

    def _log(self, path: list[str], entity: Any) -> None:
        self._recording.log(path, entity)

    def finish(self) -> None:
        """Close the recording."""
        self._recording.flush()
        self._recording.disconnect()
