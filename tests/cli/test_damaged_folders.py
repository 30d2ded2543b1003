"""Damaged models and monitors: each is read, or refused with a `ValueError` or `OSError`."""

from pathlib import Path

import pytest

from tests.fuzz_run import MUTATIONS, fuzz


@pytest.mark.parametrize(("reader", "part"), [("model", ""), ("calibrated", "monitor")])
def test_a_damaged_checkpoint_is_read_or_refused(reader: str, part: str, calibrated: Path) -> None:
    fuzz(reader, calibrated, part=part, mutations=MUTATIONS // 2)
