import signal

import pytest

from worldmodel.training.stopping import Stop, TrainingStopped


def test_the_signal_is_taken_over_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert stop.agreed() is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked()
        assert stop.agreed() == "at SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_importing_the_training_code_leaves_signals_alone() -> None:
    import worldmodel.training.stages  # noqa: F401

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_time_is_up_after_max_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stop = Stop(max_hours=0.5)
    now = 1000.0 + 1799
    stop.check("early")
    now = 1000.0 + 1801
    message = r"^Stopped after `--max-hours 0\.5`, late; run the same command to resume\.$"
    with pytest.raises(TrainingStopped, match=message):
        stop.check("late")


def test_negative_hours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^`max_hours` must not be negative, got -1\.0\.$"):
        Stop(max_hours=-1.0)
