"""`worldmodel imagine` with samplers other than the checkpoint's own, and data of another rate."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmodel.cli import main
from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory

OWN = {"num_steps": 1, "method": "euler", "eta": 0.0, "guidance": 1.0, "window": "exact"}


def imagine(model: Path, data: Path, out: Path, *options: str) -> RolloutLog:
    argv = ["imagine", "--model", model, "--data", data, "--out", out, "--only", "train/7"]
    assert main([*map(str, argv), *options]) == 0
    return RolloutLog.open(out)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--num-steps", "3"], {"num_steps": 3}),
        (["--num-steps", "2", "--method", "heun"], {"num_steps": 2, "method": "heun"}),
        (["--num-steps", "4", "--eta", "0.5"], {"num_steps": 4, "eta": 0.5}),
        (["--guidance", "2"], {"guidance": 2.0}),
    ],
)
def test_the_log_says_how_frames_were_drawn(
    untrained: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], changed: dict[str, object],
) -> None:  # fmt: skip
    plain = imagine(untrained, scenes, tmp_path / "plain.zarr")
    assert plain.attributes["sampling"] == OWN
    assert "note: confidence was trained" not in capsys.readouterr().err
    log = imagine(untrained, scenes, tmp_path / "log.zarr", *options)
    assert log.attributes["sampling"] == OWN | changed
    notes = capsys.readouterr().err
    assert "sampler (1 x euler); with another one its calibration is void." in notes
    assert ("trained without action dropout" in notes) == ("guidance" in changed)
    frames = [one.read("train/7")["imagined"].astype(float) for one in (plain, log)]
    assert np.abs(frames[0] - frames[1]).max() > 0


def test_impossible_samplers_are_refused(
    untrained: Path, scenes: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def attempt(*options: str) -> str:
        out = tmp_path / "log.zarr"
        return refused("imagine", "--model", untrained, "--data", scenes, "--out", out, *options)

    assert attempt("--num-steps", "0") == "`num_steps` must be at least 1, got 0."
    assert attempt("--method", "dpm").startswith("`method` must be one of")
    assert attempt("--eta", "2") == "`eta` must be between 0 and 1, got 2.0."
    assert attempt("--method", "heun", "--eta", "0.5").startswith("`eta` must be 0 with Heun's")
    assert attempt("--guidance=-1") == "`guidance` must be a number of at least 0, got -1.0."
    assert not (tmp_path / "log.zarr").exists()


def test_another_sampler_needs_another_log(
    untrained: Path, scenes: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "log.zarr"
    imagine(untrained, scenes, out)
    argv = ["imagine", "--model", untrained, "--data", scenes, "--out", out, "--only", "train/7"]
    assert "was written with `sampling`" in refused(*argv, "--num-steps", "2")


def test_data_at_15_hz_are_imagined_at_5_hz(
    untrained: Path, tmp_path: Path, make_scene: Callable[..., Trajectory]
) -> None:
    store = ClipStore.create(
        tmp_path / "fast.zarr", cameras=("front",), action_spec=CANONICAL, rate_hz=15.0,
        encoding="raw",
    )  # fmt: skip
    store.add(replace(make_scene("train/7", 7, num_frames=29), rate_hz=15.0))
    log = imagine(untrained, store.path, tmp_path / "log.zarr")
    logged, frames = log.read("train/7"), store.episode(0).frames["front"][:]
    assert log.attributes["rate_hz"] == 5.0
    assert log.attributes_of("train/7")["num_frames"] == 10
    np.testing.assert_array_equal(logged["frame"][:, 0], frames[::3])
    np.testing.assert_allclose(
        logged["action"][:9, :3],
        store.episode(0).actions[:27, :3].reshape(9, 3, 3).sum(1),
        atol=1e-5,
    )
