from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from worldmodel.episodes.clips import LatentBatch, LatentClips
from worldmodel.training.config import LoopConfig
from worldmodel.training.loop import fit
from worldmodel.training.randomness import StepRandomness

GROWING = LoopConfig(
    steps=20, batch_size=2, checkpoint_every=3, curriculum=((0.0, 2), (0.25, 3), (0.5, 6))
)
LENGTHS = [2] * 5 + [3] * 5 + [6] * 10


class Record(list[Any]):
    """What an objective saw; copies of the objective go on writing into it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Record":
        return self


class Mean(nn.Module):
    """Fits the mean of all latents it sees."""

    def __init__(self, stop_at: int = -1) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))
        self.lengths, self.losses, self.stop_at = Record(), Record(), stop_at

    def forward(
        self, batch: LatentBatch, draws: StepRandomness
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        loss = (batch.latents - self.mean).square().mean()
        if self.training:
            if len(self.losses) == self.stop_at:
                raise KeyboardInterrupt
            self.lengths.append(batch.latents.shape[1])
            self.losses.append(loss.item())
        return loss, {}


def clips() -> LatentClips:
    generator = torch.Generator().manual_seed(0)
    episode = LatentBatch(
        torch.randn((1, 9, 1, 1, 2, 2), generator=generator),
        torch.zeros((1, 9, 7)),
        torch.ones((1, 9), dtype=torch.bool),
        torch.zeros((1, 9)),
    )
    return LatentClips([episode], 6)


def test_clips_grow_at_the_steps_that_the_curriculum_names(tmp_path: Path) -> None:
    objective = Mean()
    fit(objective, clips(), GROWING, tmp_path)
    assert objective.lengths == LENGTHS
    speed = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("frames_per_second")
    assert [event.step for event in speed] == [10]


@pytest.mark.parametrize("stop_at", [5, 11])
def test_a_run_stopped_around_a_change_goes_on_as_it_would_have(
    stop_at: int, tmp_path: Path
) -> None:
    """Checkpoints at 3 and 9; clips change at 5 and 10: resuming crosses the change anew."""
    whole, stopped, resumed = Mean(), Mean(stop_at), Mean()
    fit(whole, clips(), GROWING, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, clips(), GROWING, tmp_path / "stopped")
    fit(resumed, clips(), GROWING, tmp_path / "stopped")
    start = stop_at - stop_at % 3
    assert resumed.lengths == LENGTHS[start:]
    assert resumed.losses == whole.losses[start:]
    assert torch.equal(resumed.mean, whole.mean)


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        (((0.1, 4),), r"^`curriculum` must start at share 0 and rise below 1, got "),
        (((0.0, 4), (0.5, 6), (0.5, 8)), r"^`curriculum` must start at share 0 and rise below 1"),
        (((0.0, 4), (1.0, 6)), r"^`curriculum` must start at share 0 and rise below 1, got "),
        (((0.0, 1),), r"^`curriculum` needs clips of at least 2 frames, got \(\(0\.0, 1\),\)\.$"),
    ],
)
def test_impossible_curricula_are_refused(
    curriculum: tuple[tuple[float, int], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GROWING, curriculum=curriculum)
