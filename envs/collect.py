"""Collection of tabletop episodes, one by one or into a clip store."""

from __future__ import annotations

import functools
import importlib.metadata
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.envs.episode_recorder import CAMERA, Shift, collect_episode
from worldmodel.envs.policies import MIXED, draw_policy
from worldmodel.envs.registry import lookup
from worldmodel.envs.tabletop import TASKS, TabletopEnv

TASK_CYCLE = ("pick_place", "push", "pick_place", "lift")
"""Tasks of the episodes of a collection of mixed tasks."""
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Settings of a collection. Equal settings give equal episodes."""

    task: str = "pick_place"
    """A task, or "mixed": half of the episodes are "pick_place", the others "push" and "lift"."""
    policy: str = MIXED
    factor: str = "nominal"
    severity: int = 1
    onset: int = 0
    """First frame with the shifted scene, or with the action fault."""
    seed: int = 0
    renderer: str = "auto"
    size: int = 64
    """Height and width in pixels."""
    num_steps: int = 40
    """Frames per episode."""

    def __post_init__(self) -> None:
        lookup("task", self.task, {MIXED: None, **TASKS})
        draw_policy(self.policy, np.random.default_rng(0))
        self.shift  # noqa: B018 (validates the shift)
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative, got {self.seed}.")
        for name in ("size", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.onset >= self.num_steps:
            raise ValueError(
                f"`onset` must be below the number of frames, {self.num_steps}, got {self.onset}."
            )

    @property
    def shift(self) -> Shift:
        """Shift of its episodes from the nominal domain."""
        return Shift(factor=self.factor, severity=self.severity, onset=self.onset)

    def task_of(self, index: int) -> str:
        """Task of an episode."""
        return TASK_CYCLE[index % len(TASK_CYCLE)] if self.task == MIXED else self.task

    def episode_id(self, index: int) -> str:
        """Id of an episode."""
        kind = f"{self.task_of(index)}-{self.policy}-{self.factor}"
        kind += f"-onset{self.onset}" if self.onset else ""
        return f"{kind}-severity{self.severity}-seed{self.seed}-{index:05d}"

    def episode_seed(self, index: int) -> int:
        """Seed of an episode's scene; episodes with the same seed are not independent.

        Every factor, severity and onset has scenes of its own, so that statistics over cells pool
        independent episodes. Tasks and policies share the scenes of an index, so that policies can
        be compared on the same scenes: resample scenes there.
        """
        cell = (
            () if self.factor == "nominal" else (*self.factor.encode(), self.severity, self.onset)
        )
        entropy = np.random.SeedSequence([self.seed, index], spawn_key=cell)
        return int(entropy.generate_state(1, np.uint64)[0] >> 1)


def collect(
    path: Path,
    collection: Collection,
    *,
    episodes: int,
    workers: int = 1,
    progress: Callable[[int], object] = lambda recorded: None,
) -> ClipStore:
    """Record the first `episodes` episodes into the store at `path`, skipping those it already has.

    `progress` is called with the number of newly available episodes. The store does not depend on
    the number of workers or on interruptions.
    """
    if episodes < 1 or workers < 1:
        raise ValueError(f"`episodes` and `workers` must be at least 1, got {episodes}, {workers}.")
    store = _open_or_create(path, collection)
    missing = [i for i in range(episodes) if collection.episode_id(i) not in store]
    progress(episodes - len(missing))
    for trajectory in record([(collection, index) for index in missing], workers=workers):
        store.add(trajectory)
        progress(1)
    return store


def _open_or_create(path: Path, collection: Collection) -> ClipStore:
    attributes = {"collection": asdict(collection), **_provenance(collection)}
    if not (path / "zarr.json").is_file():
        return ClipStore.create(
            path,
            cameras=[CAMERA],
            action_spec=CANONICAL,
            rate_hz=CANONICAL.rate_hz,
            encoding="raw",
            attributes=attributes,
        )
    store = ClipStore.open(path)
    stored = dict(store.attributes)
    stored["collection"] = {"onset": 0, **stored.get("collection", {})}  # 0.1.0 had no onset
    changed = [key for key, value in attributes.items() if stored.get(key) != value]
    if changed:
        raise ValueError(
            f"`path` {path} holds another collection ({', '.join(changed)} differ): "
            "repeat its options, or choose another path."
        )
    return store


def _provenance(collection: Collection) -> dict[str, str]:
    renderer = _environment(collection.task_of(0), collection.size, collection.renderer).renderer
    # Up to 0.1.0, shifted episodes had the scenes of nominal ones; never continue such a store.
    return {
        **({} if collection.factor == "nominal" else {"scenes": "own"}),
        "renderer": renderer.name,
        "renderer_driver": renderer.description,
        "mujoco_version": importlib.metadata.version("mujoco"),
    }


def record(episodes: Sequence[tuple[Collection, int]], *, workers: int = 1) -> Iterator[Trajectory]:
    """Record episodes (collection, index) in order, here or in single-threaded processes."""
    if workers == 1:
        yield from (_record(collection, index) for collection, index in episodes)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _prepare_worker) as pool:
        with _environment_variables(SINGLE_THREAD):
            futures = [pool.submit(_record, *episode) for episode in episodes]
        try:
            while futures:
                yield futures.pop(0).result()
        except BrokenProcessPool as error:
            reason = "a worker process died, perhaps for lack of memory"
            raise OSError(f"Recording stopped: {reason}; the same command continues it.") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare_worker() -> None:
    """Ignore Ctrl-C, and exit when the parent process ends, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _record(collection: Collection, index: int) -> Trajectory:
    return collect_episode(
        _environment(collection.task_of(index), collection.size, collection.renderer),
        collection.policy,
        seed=collection.episode_seed(index),
        shift=collection.shift,
        num_steps=collection.num_steps,
        episode_id=collection.episode_id(index),
    )


@functools.lru_cache(maxsize=len(TASKS))
def _environment(task: str, size: int, renderer: str) -> TabletopEnv:
    """Environment of this process, reused between episodes."""
    return TabletopEnv(task, size, renderer)


@contextmanager
def _environment_variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes started inside the block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
