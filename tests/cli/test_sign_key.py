"""Monitors changed by hand, and signed monitors: every command refuses what it should."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from worldmodel.calibration.calibrated import Checkpoint
from worldmodel.calibration.seal import KEY_VARIABLE, SEAL, check_seal, write_seal
from worldmodel.checkpoint import content_hash
from worldmodel.cli import main

Refused = Callable[..., str]
KEY, OTHER = b"k" * 32, b"o" * 32


def edit_json(**changes: Any) -> Callable[[Path], object]:
    """Change fields of a JSON file, as a text editor does."""
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def nudge(file: Path) -> None:
    arrays = load_file(file)
    name = next(name for name in sorted(arrays) if arrays[name].dtype.kind == "f")
    arrays[name] = np.nextafter(arrays[name], np.inf)
    save_file(arrays, file)


EDITS: list[tuple[str, Callable[[Path], object]]] = [
    ("monitor.json", edit_json(expires=None)),
    ("monitor.json", edit_json(thresholds={"notice": 9.0, "degrade": 9.0, "stop": 9.0})),
    ("monitor.json", edit_json(format=1)),
    ("monitor.safetensors", nudge),
    ("rollouts.json", edit_json(watch_horizon=1)),
    ("recalibration.safetensors", nudge),
    ("gate/monitor.json", edit_json(max_frames=1000)),
    ("gate/monitor.safetensors", nudge),
    ("gate/gate.json", edit_json(horizon=1)),
    ("calibration.json", edit_json(reference=[])),
    ("calibration.json", Path.unlink),
    ("more.json", Path.touch),
]


@pytest.fixture
def monitor(calibrated: Path, tmp_path: Path) -> Path:
    """A copy of the monitor of `calibrated`."""
    return Path(shutil.copytree(calibrated / "monitor", tmp_path / "monitor"))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    return file


@pytest.mark.parametrize(("name", "edit"), EDITS)
def test_every_edit_by_hand_is_refused_and_the_file_named(
    calibrated: Path, monitor: Path, name: str, edit: Callable[[Path], object]
) -> None:
    Checkpoint.load(calibrated, monitor=monitor)
    edit(monitor / name)
    with pytest.raises(ValueError, match=rf"was changed after it was written \({name} was edited"):
        Checkpoint.load(calibrated, monitor=monitor)


def test_the_gate_is_checked_when_it_is_read(calibrated: Path, monitor: Path) -> None:
    checkpoint = Checkpoint.load(calibrated, monitor=monitor)
    edit_json(horizon=1)(monitor / "gate" / "gate.json")
    with pytest.raises(ValueError, match=r"gate/gate\.json was edited"):
        _ = checkpoint.gate


@pytest.mark.parametrize("argument", ["format", "seal"])
def test_a_monitor_without_a_seal_of_this_version_must_be_calibrated_again(
    calibrated: Path, monitor: Path, argument: str
) -> None:
    if argument == "seal":
        (monitor / SEAL).unlink()
    else:
        edit_json(format=0)(monitor / SEAL)
    with pytest.raises(ValueError, match=r"monitor.* calibrate again\.$"):
        Checkpoint.load(calibrated, monitor=monitor)


def test_hidden_files_are_ignored(calibrated: Path, monitor: Path) -> None:
    (monitor / ".DS_Store").touch()
    Checkpoint.load(calibrated, monitor=monitor)


def test_the_whole_hash_of_the_model_counts(calibrated: Path, monitor: Path) -> None:
    """The 16 digits shown in logs are few enough to be met on purpose."""
    sha256 = content_hash(calibrated)
    check_seal(monitor, key=None, model_sha256=sha256)
    with pytest.raises(ValueError, match=r"was fitted for the model '\w{16}', not for '\w{16}';"):
        check_seal(monitor, key=None, model_sha256=sha256[:16] + "0" * 48)


@pytest.mark.parametrize("by_option", [True, False])
def test_calibrate_signs_and_watch_verifies(
    model: Path,
    scenes: Path,
    key_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Refused,
    by_option: bool,
) -> None:
    out, option = tmp_path / "signed", ("--sign-key", str(key_file)) if by_option else ()
    if not by_option:
        monkeypatch.setenv(KEY_VARIABLE, str(key_file))
    calibrate = ("calibrate", "--model", str(model), "--data", str(scenes), "--horizon", "4")
    assert main([*calibrate, "--out", str(out), *option]) == 0
    monkeypatch.setenv(KEY_VARIABLE, str(key_file))
    watch = ("watch", "--model", str(model), "--data", str(scenes), "--monitor", str(out))
    assert main([*watch, "--only", "train/0"]) == 0
    key_file.write_bytes(OTHER)
    assert "was not signed with the key of WORLDMODEL_SIGN_KEY" in refused(*watch)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "nowhere"))
    assert "nowhere" in refused(*watch)


def test_with_a_key_an_edit_with_new_hashes_and_an_unsigned_monitor_are_refused(
    calibrated: Path, monitor: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_seal(monitor, key=KEY, model_sha256=content_hash(calibrated))
    monkeypatch.setenv(KEY_VARIABLE, str(key_file))
    signed = json.loads((monitor / SEAL).read_text())
    Checkpoint.load(calibrated, monitor=monitor)
    edit_json(watch_horizon=1)(monitor / "rollouts.json")
    write_seal(monitor)
    with pytest.raises(ValueError, match="is not signed, but WORLDMODEL_SIGN_KEY is set; calibr"):
        Checkpoint.load(calibrated, monitor=monitor)
    edit_json(hmac_sha256=signed["hmac_sha256"])(monitor / SEAL)
    with pytest.raises(ValueError, match="was not signed with the key of WORLDMODEL_SIGN_KEY"):
        Checkpoint.load(calibrated, monitor=monitor)
    write_seal(monitor, key=KEY)
    edit_json(model_sha256="0" * 64)(monitor / SEAL)
    with pytest.raises(ValueError, match="was not signed with the key"):
        Checkpoint.load(calibrated, monitor=monitor)


def test_without_the_key_a_signed_monitor_loads_with_a_note(
    calibrated: Path, monitor: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_seal(monitor, key=KEY)
    Checkpoint.load(calibrated, monitor=monitor)
    assert "was not checked; set WORLDMODEL_SIGN_KEY to the key file." in caplog.text


@pytest.mark.parametrize("key", [b"", b"short", b"x" * 5000])
def test_a_key_of_no_use_is_refused_before_anything_is_computed(
    model: Path, scenes: Path, tmp_path: Path, refused: Refused, key: bytes
) -> None:
    (tmp_path / "key").write_bytes(key)
    calibrate = ("calibrate", "--model", model, "--data", scenes, "--sign-key")
    assert "must have 32 to 4096 bytes" in refused(*calibrate, tmp_path / "key")
    assert "must be a regular file" in refused(*calibrate, "/dev/zero")
    assert not (model / "monitor").exists()
