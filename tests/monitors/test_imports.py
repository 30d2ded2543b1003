"""The monitors' public names: twelve, each importable without torch or another heavy package."""

import subprocess
import sys

import pytest

from worldmodel import monitors

FACE = {
    *("RuntimeMonitor", "MonitorConfig", "Verdict", "Level", "Evidence", "EpisodeSignals"),
    *("PredictionCheck", "Claims", "Reliability", "RiskControl", "FleetDrift", "NotFittedError"),
}
SCRIPT = """
import sys
import worldmodel
before = set(sys.modules)
import worldmodel.monitors
{then}
print(*sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
"""
HEAVY = {"scipy", "matplotlib", "PIL", "safetensors", "torch", "sklearn"}


@pytest.mark.parametrize("then", ["", "from worldmodel.monitors import *"])
def test_import_loads_no_heavy_package(then: str) -> None:
    script = SCRIPT.format(then=then)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(run.stdout.split())


def test_import_alone_loads_no_numpy() -> None:
    script = SCRIPT.format(then="")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "numpy" not in run.stdout.split()


def test_face_is_the_twelve_names_each_under_its_own_name() -> None:
    assert set(monitors.__all__) == FACE
    assert monitors.__all__ == sorted(monitors.__all__)
    assert all(getattr(monitors, name).__name__ == name for name in FACE)
    assert set(dir(monitors)) >= FACE


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'heatmap'"):
        monitors.heatmap  # noqa: B018
