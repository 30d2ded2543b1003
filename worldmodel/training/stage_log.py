"""Progress bar and TensorBoard events of a training stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.summary.writer import event_file_writer
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from worldmodel.training.config import Computing
from worldmodel.training.flops import flops_per_item, peak_flops
from worldmodel.training.parallel import all_processes
from worldmodel.training.trackers import Writers

EVERY = 10
"""Steps between logged metrics."""


def num_frames(batch: Any) -> int:
    """Frames per item of a batch; views of the same time count once."""
    return int(getattr(batch, "latents", batch).shape[1])


class Speed:
    """Frames per second and model FLOPs utilisation since the last `read`.

    Utilisation as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, Appendix B): the model's
    operations, without recomputed activations, divided by the peak of the devices over that time.
    The peak is measured with a large matrix product.
    """

    def __init__(self, objective: nn.Module, *, batch_size: int, computing: Computing) -> None:
        self.objective = objective
        self.batch_size = batch_size
        self.computing = computing
        self.flops: dict[int, float] = {}
        self.frames = self.seconds = self.operations = 0.0
        self.since = time.perf_counter()

    def pause(self) -> None:
        """Exclude the time since the last step, for example spent on validation."""
        self.since = time.perf_counter()

    def count(self, batch: Any) -> None:
        """Count the step that just ended."""
        now = time.perf_counter()
        self.seconds += now - self.since
        self.frames += self.batch_size * num_frames(batch)
        self.operations += self.batch_size * self.flops_of(batch)
        self.pause()

    def flops_of(self, batch: Any) -> float:
        """Operations per item, cached by clip length."""
        length = num_frames(batch)
        if length not in self.flops:
            self.flops[length] = flops_per_item(
                self.objective, batch[:1], precision=self.computing.precision
            )
        return self.flops[length]

    def read(self) -> dict[str, float]:
        """Return the metrics and reset the counters."""
        processes = all_processes()
        peak = peak_flops(processes.device, self.computing.precision) * processes.num_processes
        figures = {
            "frames_per_second": self.frames / self.seconds,
            "mfu": self.operations / self.seconds / peak,
        }
        self.frames = self.seconds = self.operations = 0.0
        self.pause()
        return figures


class QuietWriterThreads:
    """Hook that prints no errors of the threads of event writers: the writers raise them, too."""

    def __init__(self, others: Callable[[threading.ExceptHookArgs], object]) -> None:
        self.others = others

    def __call__(self, error: threading.ExceptHookArgs) -> None:
        if type(error.thread).__module__ != event_file_writer.__name__:
            self.others(error)


class StageLog:
    """Progress bar and events of one stage; silent on all but the main process."""

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        steps: int,
        speed: Speed,
        track: Callable[[Path], Sequence[Any]] | None = None,
    ) -> None:
        if not isinstance(threading.excepthook, QuietWriterThreads):
            threading.excepthook = QuietWriterThreads(threading.excepthook)
        is_main = all_processes().is_main_process
        self.writer: Writers | None = None
        if is_main:  # drop later events, written by a killed run
            events = SummaryWriter(str(folder / "events"), purge_step=start)
            self.writer = Writers(events, track(folder) if track else ())
        self.bar = tqdm(desc=folder.name, initial=start, total=steps, disable=not is_main)
        self.speed = speed
        self.start = start

    def __enter__(self) -> StageLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def step(self, step: int, figures: dict[str, float], batch: Any) -> None:
        """Log the step that just ended."""
        self.bar.update()
        if self.writer is None:
            return
        if step > self.start:  # the first step includes setup
            self.speed.count(batch)
        if step % EVERY == 0:
            timed = self.speed.read() if self.speed.seconds else {}
            self.writer.add_scalars({**figures, **timed}, step)
            postfix = {
                name: f"{value:.4g}"
                for name, value in {**figures, **timed}.items()
                if name in ("loss", "relative_error", "psnr_db", "frames_per_second")
            }
            self.bar.set_postfix(postfix)
        self.speed.pause()
