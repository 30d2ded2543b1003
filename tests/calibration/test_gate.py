"""The gate that picks rollouts to believe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.calibration.gate import Gate, rollout_signals
from worldmodel.monitors.alarm_rule import MonitorConfig
from worldmodel.monitors.monitor import RuntimeMonitor
from worldmodel.rollouts.open_loop import EPSILONS, EpisodeRollouts

HORIZON = 10


def rollout(rng: np.random.Generator, calibration: float) -> EpisodeRollouts:
    """A rollout of eleven frames whose confidence falls with the horizon, from `calibration` on."""
    horizon = np.arange(HORIZON + 1)
    level = np.clip(calibration - 0.02 * horizon + rng.normal(0, 0.01, HORIZON + 1), 0, 1)
    shape = (HORIZON + 1, 1, 2, 3, 3)
    confidence = torch.from_numpy(level).reshape(-1, 1, 1, 1, 1, 1).expand(*shape, len(EPSILONS))
    latents = torch.zeros(shape)
    return EpisodeRollouts(latents, latents, confidence.half(), horizon)


@pytest.fixture(scope="module")
def gate() -> Gate:
    rng = np.random.default_rng(0)
    rollouts = [rollout(rng, 0.8) for _ in range(60)]
    seen = [rollout_signals(r, HORIZON) for r in rollouts]
    config = MonitorConfig(alpha_notice=0.2, alpha_degrade=0.2, alpha_stop=0.2)
    monitor = RuntimeMonitor(config).fit(seen[:30], frame_shape=(1, 8, 8, 3), reference=seen[30:])
    return Gate(monitor, HORIZON)


def test_it_stops_about_its_share_of_nominal_rollouts(gate: Gate) -> None:
    rng = np.random.default_rng(1)
    through = np.mean([gate.lets_through(rollout(rng, 0.8)) for _ in range(200)])
    # 0.8 of nominal rollouts; 30 calibration rollouts move the share by 0.07 (1 sd), 200 by 0.03.
    assert 0.58 <= through <= 0.98


def test_it_stops_rollouts_the_model_distrusts(gate: Gate) -> None:
    rng = np.random.default_rng(2)
    assert not any(gate.lets_through(rollout(rng, 0.5)) for _ in range(20))


def test_it_looks_no_further_than_it_was_fitted(gate: Gate) -> None:
    good = rollout(np.random.default_rng(3), 0.9)
    longer = EpisodeRollouts(
        torch.cat([good.truth, good.truth]),
        torch.cat([good.imagined, good.imagined]),
        torch.cat([good.confidence, torch.zeros_like(good.confidence)]),
        np.arange(2 * (HORIZON + 1)),
    )
    assert gate.lets_through(good)
    assert gate.lets_through(longer)
    assert not replace(gate, horizon=HORIZON + 3).lets_through(longer)


def test_it_survives_a_round_trip_and_refuses_a_damaged_file(gate: Gate, tmp_path: Path) -> None:
    gate.save(tmp_path / "gate")
    loaded = Gate.load(tmp_path / "gate")
    rng = np.random.default_rng(4)
    some = [rollout(rng, calibration) for calibration in np.linspace(0.6, 0.9, 20)]
    assert [loaded.lets_through(r) for r in some] == [gate.lets_through(r) for r in some]
    (tmp_path / "gate" / "gate.json").unlink()
    with pytest.raises(ValueError, match="cannot be read; calibrate it again"):
        Gate.load(tmp_path / "gate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "missing required field `horizon`"),
        ('{"horizon": "4"}', "`horizon`: expected `int`, got `str`"),
        ('{"horizon": 0}', "`horizon`: expected `int` >= 1"),
        ('{"horizon": NaN}', "no NaN and no infinity, after `horizon`"),
        ('{"horizon": ' + "[" * 100_000, "`horizon`|nested too deeply"),
    ],
)
def test_a_wrong_horizon_is_named(gate: Gate, tmp_path: Path, text: str, message: str) -> None:
    gate.save(tmp_path)
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(ValueError, match=rf"gate\.json.*({message}).*; calibrate it again"):
        Gate.load(tmp_path)
