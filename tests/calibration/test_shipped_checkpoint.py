"""The shipped checkpoint keeps what its model card says, on held-out episodes simulated here."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from worldmodel.calibration.calibrated import Checkpoint
from worldmodel.checkpoint import SHIPPED
from worldmodel.demo import Group, count, imagine_group
from worldmodel.envs.collect import Collection
from worldmodel.evaluation.simulate import simulate
from worldmodel.monitors.metrics.detection import auroc
from worldmodel.monitors.reliability.counts import summarize
from worldmodel.rollouts.quality import image_quality

SEED = 3_000_017
NOMINAL = 8


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.load("tabletop")


@pytest.fixture(scope="module")
def groups(checkpoint: Checkpoint) -> dict[str, Group]:
    base = Collection(renderer="ray", seed=SEED)
    shifted = Collection(renderer="ray", seed=SEED, factor="background", severity=3)
    plan: Sequence[tuple[str, Collection, int]] = [
        ("nominal", base, NOMINAL),
        ("background", shifted, 4),
    ]
    episodes = simulate(checkpoint.model, plan, workers=1)
    return {name: imagine_group(checkpoint, part, seed=SEED) for name, part in episodes.items()}


def test_it_is_small_enough_to_ship_and_names_no_path_of_its_making() -> None:
    files = [file for file in (SHIPPED / "tabletop").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16e6
    assert {"config.json", "weights.safetensors", "README.md"} <= {file.name for file in files}
    for file in files:
        if file.suffix in (".json", ".md"):
            assert not re.search(r'"(/[\w.-]+){2,}', file.read_text())  # an absolute path


def test_imagined_pictures_beat_a_copy_and_need_their_actions(
    checkpoint: Checkpoint, groups: dict[str, Group]
) -> None:
    nominal = groups["nominal"]
    rng = np.random.default_rng(0)
    rows = {
        row.step: row
        for row in image_quality(checkpoint.model, nominal.episodes, nominal.rollouts, rng=rng)
    }
    # Measured on 80 episodes: see the model card. 8 episodes move a mean by about 0.7 dB (1 sd).
    assert rows[5].gain[0] >= 3
    assert rows[10].gain[0] >= 3
    assert rows[5].loss_when_shuffled[0] >= 3


@pytest.mark.parametrize("horizon", [1, 4, 8, 16])
def test_shown_confidence_comes_true(groups: dict[str, Group], horizon: int) -> None:
    nominal = groups["nominal"]
    bins = count(nominal).episode_bins(horizon=horizon)
    # 8 episodes: the sample alone moves the error by about 0.014 (see the model card's interval).
    assert summarize(bins, rng=np.random.default_rng(0), num_resamples=2).ece <= 0.03


def test_confidence_is_recalibrated_for_familiar_frames_only(groups: dict[str, Group]) -> None:
    """Another background looks unfamiliar in every frame, so its confidence stays as stated."""
    for stated, shown in zip(groups["nominal"].rollouts, groups["nominal"].shown, strict=True):
        assert not torch.equal(stated.confidence, shown.confidence)
    pairs = zip(groups["background"].rollouts, groups["background"].shown, strict=True)
    assert all(torch.equal(stated.confidence, shown.confidence) for stated, shown in pairs)


def test_the_monitor_tells_another_background(groups: dict[str, Group]) -> None:
    calm, odd = (
        np.array([episode.alarm_score.max() for episode in groups[name].watched])
        for name in ("nominal", "background")
    )
    assert auroc(calm, odd) >= 0.95
    assert all(episode.levels.any() for episode in groups["background"].watched)
