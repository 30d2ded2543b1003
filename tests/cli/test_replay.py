"""A watched rollout replays from its log to what the log says of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldmodel.calibration.calibrated import Calibration
from worldmodel.cli import main
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel
from worldmodel.monitors.replay import replay
from worldmodel.runtime.watch import logged_steps, verdict_signals


def test_a_watched_rollout_replays_bit_for_bit(
    calibrated: Path,
    tmp_path: Path,
    make_store: Callable[..., Path],
    make_scene: Callable[..., Trajectory],
) -> None:
    """Half of the episode is odd, so that there are alarms to repeat."""
    plain, odd = make_scene("a", 0), make_scene("a", 0, odd=True)
    plain.frames["front"].pixels[6:] = odd.frames["front"][6:12]
    data, out = make_store("half.zarr", plain), tmp_path / "log.zarr"
    watched = ["watch", "--model", str(calibrated), "--data", str(data), "--out", str(out)]
    assert main(watched) == 1
    logged = RolloutLog.open(out).read("a")
    calibration = Calibration.load(calibrated / "monitor", WorldModel.load(calibrated))
    verdicts = list(replay(calibration.monitor, logged_steps(logged)))
    assert len({verdict.level for verdict in verdicts}) > 1
    names, map_shape = (
        calibration.monitor.alarm_rule_.channels_.names,
        logged["trust_map"].shape[1:],
    )
    for t, verdict in enumerate(verdicts):
        for name, value in verdict_signals(verdict, names, map_shape).items():
            if name == "causes":
                assert tuple(value) == logged[name][t]
            else:
                np.testing.assert_array_equal(value, logged[name][t], err_msg=name)
