"""Provenance of benchmarks: seeds that were looked at before."""

import pytest

from benchmarks.provenance import note_if_looked_at


@pytest.mark.parametrize(
    ("seed", "known"), [(2_000_003, True), (3_000_103, True), (9_100_003, False), (2, False)]
)
def test_a_seed_that_was_looked_at_is_named(
    seed: int, known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    note_if_looked_at(seed)
    assert capsys.readouterr().err.startswith(f"note: figures of seed {seed} ") == known
