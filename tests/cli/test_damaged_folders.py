"""Damaged models and monitors: each is read, or refused with a `ValueError` or `OSError`."""

import shutil
from pathlib import Path

import pytest

from tests.fuzz_run import MUTATIONS, fuzz
from worldmodel.calibration.calibrated import Checkpoint, read_record
from worldmodel.calibration.seal import write_seal


@pytest.mark.parametrize(("reader", "part"), [("model", ""), ("calibrated", "monitor")])
def test_a_damaged_checkpoint_is_read_or_refused(reader: str, part: str, calibrated: Path) -> None:
    fuzz(reader, calibrated, part=part, mutations=MUTATIONS // 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"horizon": 4, "watch_horizon": 4}', "missing required field `watch_start`"),
        ('{"horizon": "4"}', "`horizon`: expected `int`, got `str`"),
        ("", "is not valid JSON"),
    ],
)
def test_wrong_settings_of_rollouts_are_named(
    calibrated: Path, tmp_path: Path, text: str, message: str
) -> None:
    """With a right seal, as of one who knows how it is made."""
    copy = Path(shutil.copytree(calibrated, tmp_path / "copy"))
    (copy / "monitor" / "rollouts.json").write_text(text)
    write_seal(copy / "monitor")
    with pytest.raises(ValueError, match=rf"rollouts\.json.*{message}.*\); calibrate it again"):
        Checkpoint.load(copy, stages=())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": 1}', "`data`: expected `str`, got `int`"),
        ('{"calibration": [1]}', r"`calibration\[0\]`: expected `str`"),
        ('{"renderer": ["ray"]}', "`renderer`: expected"),
        ('{"other": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_record_of_the_calibration_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ValueError, match=rf"calibration\.json.*{message}.*calibrate again"):
        read_record(tmp_path)
