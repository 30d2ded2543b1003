"""A short training run for tests: started on one process or several, it writes what came out."""

import sys
from pathlib import Path

import torch
from torch import Generator

from worldmodel.episodes.clips import LatentBatch, LatentClips
from worldmodel.networks.dynamics import Dynamics, DynamicsConfig
from worldmodel.training.config import Computing, LoopConfig
from worldmodel.training.loop import fit
from worldmodel.training.objectives import DynamicsObjective
from worldmodel.training.parallel import all_processes, is_sharded
from worldmodel.training.stopping import Stop, TrainingStopped

CONFIG = LoopConfig(
    steps=11, batch_size=4, warmup=2, checkpoint_every=4, muon_learning_rate=0.02, average_decay=0.6
)


class StopAfter(Stop):
    """Stops after so many steps."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.left = num_steps + 1  # it is asked once before the first step

    def agreed(self) -> str | None:
        self.left -= 1
        return None if self.left else "by the test"


def clips() -> LatentClips:
    """Windows of one episode of noise."""
    draw = Generator().manual_seed(0)
    episode = LatentBatch(
        torch.randn((1, 12, 1, 2, 4, 4), generator=draw).half(),
        torch.randn((1, 12, 7), generator=draw),
        torch.ones((1, 12), dtype=torch.bool),
        torch.zeros((1, 12)),
    )
    return LatentClips([episode], 5)


def objective() -> DynamicsObjective:
    """The same small network every time."""
    torch.manual_seed(0)
    config = DynamicsConfig(
        channels=2, height=4, width=4, dim=32, condition_dim=8, layers=2, heads=2, context=3
    )
    return DynamicsObjective(Dynamics(config), own_context=0.5, passes=2)


def train(folder: Path, *, stop_after: int = 0, precision: str = "no") -> dict[str, torch.Tensor]:
    """Final averaged weights; with `stop_after` the run is stopped there and continued."""
    computing = Computing(precision=precision)
    if stop_after:
        try:
            stop = StopAfter(stop_after)
            fit(objective(), clips(), CONFIG, folder, computing=computing, stop=stop)
        except TrainingStopped:
            pass
    return fit(objective(), clips(), CONFIG, folder, computing=computing).state_dict()


if __name__ == "__main__":
    out = Path(sys.argv[1])
    weights = train(out / "run", stop_after=int(sys.argv[2]), precision=sys.argv[3])
    facts = {"processes": all_processes().num_processes, "sharded": is_sharded()}
    torch.save({"weights": weights, **facts}, out / f"result-{all_processes().process_index}.pt")
