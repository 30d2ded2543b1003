"""C3's calibration figures by its published protocol, beside those of the right frames."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.rollouts.c3_protocol import write_c3
from worldmodel.rollouts.log import LoggedRollout
from worldmodel.rollouts.open_loop import EPSILONS

AS_STATED = {"confidence": "as stated"}


def rollout(seed: int, num_frames: int, **changes: Any) -> LoggedRollout:
    """A rollout of random latents of 2 x 3 x 4, whose confidence is random too."""
    rng = np.random.default_rng(seed)
    shape = (num_frames, 1, 2, 3, 4)
    truth = rng.normal(size=shape).astype(np.float16)
    signals = {
        "latent": truth,
        "imagined_latent": (truth + 0.4 * rng.normal(size=shape)).astype(np.float16),
        "confidence": rng.random((*shape, len(EPSILONS))).astype(np.float16),
        "horizon": np.arange(num_frames),
    }
    signals["imagined_latent"][0] = truth[0]
    signals["confidence"][0] = 1
    fields = {"name": f"train/{seed}.mp4", "attributes": {"num_frames": num_frames}}
    return LoggedRollout(**{**fields, "is_closed": True, "signals": signals, **changes})


def published(folder: Path, epsilon: str) -> tuple[float, float, float]:
    """Accuracy, ECE and MCE from the written arrays, bin by bin."""
    edges, weighted, counts = np.linspace(0, 1, 21), np.zeros(20), np.zeros(20)
    accuracy = 0.0
    for video in sorted((folder / "videos").iterdir()):
        truth, made, stated = (
            np.load(video / f"{name}_conf_thresh_{epsilon}.npy")
            for name in ("gt_latents", "generated_latents", "raw_conf_pred")
        )
        correct = (np.abs(truth[1:] - made) <= float(epsilon)).astype(np.float64)
        accuracy += correct.mean() * stated.size
        for index in range(20):
            inside = (stated > edges[index]) & (stated <= edges[index + 1])
            if inside.any():
                weighted[index] += abs((correct - stated)[inside].mean()) * inside.sum()
                counts[index] += inside.sum()
    return accuracy / counts.sum(), weighted.sum() / counts.sum(), (weighted / counts).max()


def test_figures_are_those_of_the_published_protocol(tmp_path: Path) -> None:
    rollouts = [rollout(0, 9), rollout(1, 6)]
    figures = write_c3(rollouts, AS_STATED, tmp_path / "c3")
    names = {path.name for path in (tmp_path / "c3" / "videos").iterdir()}
    assert names == {"train%2F0%2Emp4", "train%2F1%2Emp4"}
    one = tmp_path / "c3" / "videos" / "train%2F0%2Emp4"
    assert np.load(one / "gt_latents_conf_thresh_1.0.npy").shape == (9, 3, 4, 2)
    assert np.load(one / "generated_latents_conf_thresh_0.1.npy").shape == (8, 3, 4, 2)
    stated = np.load(one / "raw_conf_pred_conf_thresh_0.30000000000000004.npy")
    np.testing.assert_array_equal(
        stated[1:], rollouts[0].confidence[1:-1, 0, ..., 2].float().permute(0, 2, 3, 1)
    )
    assert not stated[0].any()
    for name, epsilon in {"0.1": 0.1, "0.5": 0.5, "1.0": 1.0}.items():
        found = figures[epsilon]["as_published"]
        assert (found.accuracy, found.ece, found.mce) == pytest.approx(
            published(tmp_path / "c3", name), abs=1e-6
        )
    stored = json.loads((tmp_path / "c3" / "metrics.json").read_text())
    assert stored[4]["epsilon"] == 0.5
    assert stored[4]["same"]["ece"] == figures[0.5]["same"].ece


def test_the_right_figures_compare_the_same_frame(tmp_path: Path) -> None:
    """Imagined frames equal to the truth are always right; shifted by one, they are not."""
    exact = rollout(0, 30)
    exact.signals["imagined_latent"][:] = exact.signals["latent"]
    exact.signals["confidence"][1:] = 0.9
    both = write_c3([exact], AS_STATED, tmp_path / "c3")[0.1]
    right = both["same"]
    assert (right.accuracy, right.ece) == (1.0, pytest.approx(0.1, abs=1e-3))
    assert both["as_published"].accuracy < 0.2


@pytest.mark.parametrize(
    ("changes", "attributes", "match"),
    [
        ({"is_closed": False}, AS_STATED, "needs rollouts from one frame to the end"),
        ({"attributes": {"num_frames": 7}}, AS_STATED, "a `--horizon` of at least 6"),
        ({}, {"confidence": "none"}, "confidence as stated, but that of this log is none"),
        ({"signals": {"horizon": np.arange(5)}}, AS_STATED, "this log has none"),
    ],
)
def test_other_rollouts_are_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], attributes: dict[str, str], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        write_c3([rollout(0, 5, **changes)], attributes, tmp_path / "c3")
    assert not (tmp_path / "c3").exists()
