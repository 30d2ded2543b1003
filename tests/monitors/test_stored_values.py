"""Wrong values in monitor.json, with right hashes: each is refused by file and field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.channels.signals import EpisodeSignals
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.monitors.storage import _json_hash

CONFIG = MonitorConfig(alpha_notice=0.2, alpha_degrade=0.2, alpha_stop=0.2)


@pytest.fixture
def monitor() -> RuntimeMonitor:
    rng = np.random.default_rng(0)
    episodes = [EpisodeSignals(actions=rng.normal(size=(6, 2, 7))) for _ in range(8)]
    return RuntimeMonitor(CONFIG).fit(episodes[:4], reference=episodes[4:], frame_shape=(8, 8, 3))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change monitor.json as one who knows its hash could."""
    fields = json.loads((folder / "monitor.json").read_text())
    change(fields)
    del fields["json_sha256"]
    fields["json_sha256"] = _json_hash(fields)
    (folder / "monitor.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("num_reference",), "3", "`num_reference`: expected `int`, got `str`"),
        (("rate_hz",), 0, "`rate_hz`: expected `float` > 0"),
        (("frame_shape",), [8, -8, 3], r"`frame_shape\[1\]`: expected `int` >= 1"),
        (("frame_shape",), None, "`frame_shape`: expected `array`, got `null`"),
        (("config", "calm_steps"), 1.5, r"`config\.calm_steps`: expected `int`, got `float`"),
        (("config", "calm_steps"), 0, "`config`: `calm_steps` must be at least 1, got 0"),
        (("scales", "action"), {"centre": 1.0}, "missing required field `spread`"),
        (("thresholds", "panic"), 1.0, "invalid enum value 'panic'"),
        (("thresholds", "stop"), float("nan"), "no NaN and no infinity, after `stop`"),
        (("expires",), "soon", "`expires`: invalid RFC3339"),
        (("expires",), "2030-01-01T12:00:00", "must have a time zone"),
        (("cameras",), "front", r"`cameras`: expected `array \| null`, got"),
        (("max_frames",), ..., "missing required field `max_frames`"),
    ],
)
def test_wrong_values_are_refused_by_file_and_field(
    monitor: RuntimeMonitor, tmp_path: Path, place: tuple[str, ...], value: object, message: str
) -> None:
    def spoil(fields: dict[str, Any]) -> None:
        for name in place[:-1]:
            fields = fields[name]
        if value is ...:
            del fields[place[-1]]
        else:
            fields[place[-1]] = value

    monitor.save(tmp_path)
    rewrite(tmp_path, spoil)
    with pytest.raises(ValueError, match=message) as caught:
        RuntimeMonitor.load(tmp_path)
    assert str(caught.value).startswith(f"The monitor in {tmp_path} cannot be read (")
    assert str(tmp_path / "monitor.json") in str(caught.value)


def test_deep_nesting_is_refused(monitor: RuntimeMonitor, tmp_path: Path) -> None:
    monitor.save(tmp_path)
    (tmp_path / "monitor.json").write_text('{"format": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"monitor\.json is nested too deeply\); calibrate it"):
        RuntimeMonitor.load(tmp_path)
