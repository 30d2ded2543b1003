"""`--device` and `--dtype` of the commands that run a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.calibration.calibrated import read_record
from worldmodel.cli import main
from worldmodel.datasets.rollout_log import RolloutLog

Refused = Callable[..., str]
COMMANDS = {
    "imagine": ("--model", "M", "--data", "D", "--out", "O"),
    "calibrate": ("--model", "M", "--data", "D", "--out", "O"),
    "watch": ("--model", "M", "--data", "D"),
    "serve": ("--model", "M"),
    "evaluate": ("--model", "M"),
    "demo": ("--model", "M"),
    "certify": ("M", "--data", "D"),
}
"""Command -> arguments; M, D, O: model, data and a new folder."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_does_not_exist_is_refused(
    command: str, calibrated: Path, scenes: Path, tmp_path: Path, refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = {"M": calibrated, "D": scenes, "O": tmp_path / "out"}
    words = [str(places.get(word, word)) for word in COMMANDS[command]]
    message = refused(command, *words, "--device", "cuda:1")
    assert message == "`--device cuda:1` does not exist: PyTorch finds no CUDA device; use cpu."
    assert not (tmp_path / "out").exists()


def imagined(model: Path, data: Path, out: Path, *options: str) -> RolloutLog:
    argv = ["imagine", "--model", model, "--data", data, "--out", out, "--horizon", "4"]
    assert main([*map(str, argv), "--episodes", "2", *options]) == 0
    return RolloutLog.open(out)


def test_rollouts_in_half_precision_are_close_and_say_so(
    calibrated: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, refused: Refused,
) -> None:  # fmt: skip
    exact = imagined(calibrated, scenes, tmp_path / "exact.zarr", "--device", "cpu")
    assert exact.attributes["dtype"] == exact.attributes["calibrated_dtype"] == "float32"
    assert "calibrated in" not in caplog.text
    rough = imagined(calibrated, scenes, tmp_path / "rough.zarr", "--dtype", "bfloat16")
    assert rough.attributes["dtype"] == "bfloat16"
    assert rough.attributes["calibrated_dtype"] == "float32"
    assert "the networks run in bfloat16, but the monitor in" in caplog.text
    for name in exact.rollouts():
        one, other = exact.read(name), rough.read(name)
        assert one["error"].dtype == other["error"].dtype == np.float16
        assert np.abs(one["error"].astype(float) - other["error"]).mean() < 0.05
    message = refused(
        "imagine", "--model", calibrated, "--data", scenes, "--out", tmp_path / "rough.zarr",
        "--horizon", "4", "--episodes", "2",
    )  # fmt: skip
    assert "was written with `dtype` 'bfloat16', not 'float32'" in message


def test_a_calibration_says_in_which_precision_it_was_made(
    untrained: Path, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Path(shutil.copytree(untrained, tmp_path / "model"))
    argv = ["calibrate", "--model", model, "--data", scenes, "--horizon", "4"]
    options = ["--nuisance", "none", "--dtype", "bfloat16"]
    assert main([*map(str, argv), *options]) == 0
    assert read_record(model / "monitor").dtype == "bfloat16"
    assert json.loads((model / "monitor" / "calibration.json").read_text())["dtype"] == "bfloat16"
    out = tmp_path / "watched.zarr"
    watch = ["watch", "--model", model, "--data", scenes, "--only", "train/9", "--out", out]
    main([*map(str, watch), "--dtype", "bfloat16"])
    assert "calibrated in" not in caplog.text
    attributes = RolloutLog.open(out).attributes
    assert attributes["dtype"] == attributes["calibrated_dtype"] == "bfloat16"
