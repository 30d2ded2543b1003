"""From a clip store to a trained world model: tokenizer, dynamics, confidence head, judges."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from worldmodel.datasets.clip_dataset import found_cameras, stack_views
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset as Episodes
from worldmodel.datasets.resampling import resampled
from worldmodel.latent_clips import LatentBatch, LatentClips, cache_latents, encode_store
from worldmodel.loop_config import LoopConfig
from worldmodel.memory import plan
from worldmodel.model import WorldModel, resize
from worldmodel.objectives import (
    ConfidenceObjective,
    DynamicsObjective,
    JudgeObjective,
)
from worldmodel.parallel import all_processes, is_sharded
from worldmodel.presets import Preset, get_preset
from worldmodel.stopping import Stop
from worldmodel.tokenizer_objective import TokenizerObjective
from worldmodel.tokenizers import to_model
from worldmodel.training import Items, Validate, fit
from worldmodel.transformer import Dynamics
from worldmodel.untrained import model_actions, new_model
from worldmodel.validation import NUM_CLIPS, HeldOut, held_out, show_reliability, show_rollouts


@dataclass(frozen=True)
class Split:
    """Which episodes teach what, by name; no episode, and no copy of one, is in two lists."""

    dynamics: tuple[str, ...]
    confidence: tuple[str, ...]
    untouched: tuple[str, ...]


def split_episodes(store: ClipStore, shares: tuple[float, float]) -> Split:
    """Deal the episodes of a store into a split, the same way every time.

    Episodes with the same actions are copies (some data sets ship their training split again as
    validation) and stay together. At least one episode goes to each of the first two parts.
    """
    copies: dict[bytes, list[str]] = {}
    for episode_id in store.episode_ids:
        copies.setdefault(store.episode(episode_id).actions.tobytes(), []).append(episode_id)
    groups = list(copies.values())
    if len(groups) < 2:
        raise ValueError(
            f"`data` needs at least 2 different episodes to train on, got {len(groups)} in "
            f"{store.path}."
        )
    order = np.random.default_rng(0).permutation(len(groups))
    confidence = min(max(1, round(shares[1] * len(groups))), len(groups) - 1)
    dynamics = min(max(1, round(shares[0] * len(groups))), len(groups) - confidence)
    dealt = [
        [name for i in part for name in groups[i]]
        for part in np.split(order, [dynamics, dynamics + confidence])
    ]
    return Split(*(tuple(part) for part in dealt))


def check_lengths(data: Episodes, preset: Preset, split: Split) -> None:
    """Refuse, before anything is trained, data of which a stage could use no episode."""
    needed = {
        "tokenizer": (preset.pair_stride + 1, split.dynamics),
        "dynamics": (preset.clip_frames, split.dynamics),
        "confidence": (preset.horizon + preset.longest_start, split.confidence),
    }
    for stage, (num_frames, names) in needed.items():
        longest = max(data.summary(name).num_frames for name in names)
        if longest < num_frames:
            raise ValueError(
                f"Stage {stage!r} needs episodes of at least {num_frames} frames, but all "
                f"{len(names)} dealt to it from {data.path} are shorter (the longest has "
                f"{longest}); add longer episodes or choose a preset of shorter clips."
            )


class FramePairs(Dataset[torch.Tensor]):
    """Two frames of one camera and episode a few steps apart, uint8 [2, 1, height, width, 3].

    All episodes are kept in memory at their own size.
    """

    def __init__(
        self, data: Episodes, episode_ids: Sequence[str], cameras: Sequence[str], stride: int
    ) -> None:
        self.stride = stride
        episodes = [data.episode(name) for name in episode_ids]
        self.episodes = [
            torch.from_numpy(stack_views(e, found_cameras(e, cameras), slice(None)))
            for e in episodes
        ]
        self.index = [
            (e, t, view)
            for e, frames in enumerate(self.episodes)
            for view in range(frames.shape[1])
            for t in range(len(frames) - stride)
        ]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> torch.Tensor:
        episode, start, view = self.index[item]
        return self.episodes[episode][[start, start + self.stride], view : view + 1]

    collate = staticmethod(torch.stack)


@dataclass(frozen=True)
class Run:
    """One training run: data, recipe and the folder everything goes to."""

    store: ClipStore
    preset: Preset
    folder: Path
    split: Split
    stop: Stop
    tokenizer: str | None = None
    """Folder or hub name of a trained autoencoder; None: train one."""

    @property
    def data(self) -> Episodes:
        """The episodes as the model sees them: at its rate, with its actions."""
        return resampled(self.store, model_actions(self.store, self.preset))

    def fit(
        self,
        objective: nn.Module,
        dataset: Items,
        config: LoopConfig,
        *,
        name: str,
        validate: Validate | None = None,
    ) -> None:
        """Train one stage in its own folder."""
        folder, computing = self.folder / name, self.preset.computing
        fit(
            objective, dataset, config, folder,
            computing=computing, stop=self.stop, validate=validate,
        )  # fmt: skip


def train_tokenizer(run: Run, model: WorldModel) -> bool:
    """Train the autoencoder on pairs of frames, unless it came trained; then fit the whitening."""
    pairs = FramePairs(run.data, run.split.dynamics, model.config.cameras, run.preset.pair_stride)
    if run.tokenizer is None:
        size, loss = model.config.image_size, run.preset.tokenizer_loss
        objective = TokenizerObjective(model.tokenizer, size, loss)
        run.fit(objective, pairs, run.preset.tokenizer_loop, name="tokenizer")
    every = max(1, len(pairs) // 2000)
    frames = (pairs[i][0] for i in range(0, len(pairs), every))
    model.tokenizer.fit_whitening(resize(to_model(f), model.config.image_size) for f in frames)
    return True


def latents_of(run: Run, model: WorldModel, names: Sequence[str]) -> list[LatentBatch]:
    """Latents of some of the run's episodes."""
    if all_processes().is_main_process:
        cache_latents(model, run.store, names, until=run.stop.asked)
    run.stop.check("while episodes were encoded")
    return encode_store(model, run.store, names)


def fit_normalisers(model: WorldModel, episodes: Sequence[LatentBatch]) -> None:
    """Set the scale of actions and of the change from frame to frame from the training episodes."""
    actions = torch.cat([e.actions[e.action_valid] for e in episodes])
    dynamics = own_dynamics(model)
    condition = dynamics.condition
    condition.action_mean.copy_(actions.mean(0))
    condition.action_std.copy_(actions.std(0).clamp_min(1e-4))
    changes = torch.cat([changes_of(e) for e in episodes])
    dynamics.change_std.copy_(changes.std((0, 2, 3)).clamp_min(1e-3))


def own_dynamics(model: WorldModel) -> Dynamics:
    """The network of a model made by `new_model`."""
    assert isinstance(model.dynamics, Dynamics), "published networks are not trained here"
    return model.dynamics


def changes_of(episode: LatentBatch) -> Float[Tensor, "changes channel h w"]:
    """Change from frame to frame of every view that both frames have."""
    change, there = episode.latents.float().diff(dim=1), episode.view_valid
    if there is None:
        return change.flatten(0, 2)
    return change[there[:, 1:] & there[:, :-1]]


def train_dynamics(run: Run, model: WorldModel) -> bool:
    """Teacher forcing first, then the model's own context."""
    preset = run.preset
    episodes = latents_of(run, model, run.split.dynamics)
    fit_normalisers(model, episodes)
    clips = LatentClips(episodes, preset.clip_frames, short=preset.image_share > 0)
    validate = looking_at(run, model, run.split.confidence, show_rollouts)
    shares = {"action_dropout": preset.action_dropout, "image_share": preset.image_share}
    dynamics = own_dynamics(model)
    forced = DynamicsObjective(dynamics, own_context=0.0, passes=1, **shares)
    run.fit(forced, clips, preset.dynamics_loop, name="dynamics", validate=validate)
    own = DynamicsObjective(
        dynamics, own_context=0.8, passes=preset.rollout_passes, pure_noise=0.8, **shares
    )
    run.fit(own, clips, preset.rollout_loop, name="rollout", validate=validate)
    return True


def train_confidence(run: Run, model: WorldModel) -> bool:
    """Train the head on rollouts over episodes the dynamics never saw."""
    preset = run.preset
    episodes = latents_of(run, model, run.split.confidence)
    clips = LatentClips(episodes, preset.horizon + preset.longest_start)
    objective = ConfidenceObjective(model, longest_start=preset.longest_start)
    validate = looking_at(run, model, run.split.untouched, show_reliability)
    run.fit(objective, clips, preset.confidence_loop, name="confidence", validate=validate)
    return True


def looking_at(
    run: Run,
    model: WorldModel,
    names: Sequence[str],
    show: Callable[[WorldModel, HeldOut, Any, int], None],
) -> Validate | None:
    """Show the model's rollouts over the first of some episodes; None where none is long enough."""
    preset = run.preset
    length = preset.horizon + preset.longest_start
    long = [name for name in names if run.data.summary(name).num_frames >= length][:NUM_CLIPS]
    seen = held_out(
        latents_of(run, model, long), start=preset.longest_start, horizon=preset.horizon
    )
    return None if seen is None else partial(show, model, seen)


def train_judge(run: Run, model: WorldModel) -> bool:
    """Train the judges of success, if the data say what succeeded."""
    episodes = [
        e for e in latents_of(run, model, run.split.dynamics) if not e.success.isnan().any()
    ]
    if not episodes:
        return False
    length = min(e.latents.shape[1] for e in episodes)
    objective = JudgeObjective(model.judge, model.action_judge)
    run.fit(objective, LatentClips(episodes, length), run.preset.judge_loop, name="judge")
    return True


STAGES: dict[str, Callable[[Run, WorldModel], bool]] = {
    "tokenizer": train_tokenizer,
    "dynamics": train_dynamics,
    "confidence": train_confidence,
    "judge": train_judge,
}
"""Stages of a training run, in the order they need each other; each says whether it trained."""
PARTS = {
    "tokenizer": ("tokenizer",),
    "dynamics": ("dynamics",),
    "confidence": ("confidence",),
    "judge": ("judge", "action_judge"),
}
"""Stage -> the parts of the model that it trains."""


def provenance(run: Run, preset_name: str) -> dict[str, Any]:
    """What a checkpoint says of its own making."""
    return {
        "data": run.store.path.name,
        "data_attributes": run.store.attributes,
        "preset": preset_name,
        "tokenizer": run.tokenizer,
        "recipe": json.loads(json.dumps(asdict(run.preset))),
        "split": asdict(run.split),
        "versions": {
            name: version(name) for name in ("worldmodel", "torch", "diffusers", "accelerate")
        },
        "stages": [],
    }


def train(
    store: ClipStore,
    preset_name: str,
    folder: Path,
    *,
    restart: str | None = None,
    tokenizer: str | None = None,
    max_hours: float | None = None,
) -> WorldModel:
    """Run every stage that `folder` does not hold yet; the model ends up in `folder/model`.

    `tokenizer` is the folder or hub name of a trained autoencoder, of which only the whitening is
    fitted then.

    `restart` names a stage to train anew, from the start, with all that follow it. SIGTERM, or the
    end of `max_hours`, stops the run after the step it is in; called again, it goes on from there.

    Raises:
        TrainingStopped: the run was stopped early, with everything saved.
        ValueError: too few or too short episodes, an unknown preset or stage, or `folder` holds a
            run of another preset or tokenizer or of other data.
    """
    preset = get_preset(preset_name)
    if restart is not None and restart not in STAGES:
        raise ValueError(f"`restart` must be one of {list(STAGES)}, got {restart!r}.")
    with Stop(max_hours) as stop:
        run = Run(store, preset, folder, split_episodes(store, preset.shares), stop, tokenizer)
        check_lengths(run.data, preset, run.split)
        processes = all_processes()
        if processes.is_main_process:
            prepare(run, preset_name, restart)
        processes.wait_for_everyone()
        model = WorldModel.load(folder / "model").to(processes.device)
        done = model.config.provenance["stages"]
        left = [name for name in STAGES if name not in done]
        if processes.is_main_process and "dynamics" in left:
            number, sharded = processes.num_processes, is_sharded()
            text = plan(model, preset, processes=number, is_sharded=sharded)
            tqdm.write(text, file=sys.stderr)
        for name in left:
            if not STAGES[name](run, model):
                continue
            done.append(name)
            if processes.is_main_process:
                model.save(folder / "model")
            processes.wait_for_everyone()
    return model.eval()


def prepare(run: Run, preset_name: str, restart: str | None) -> None:
    """Put the model to go on with into `<run>/model`: a new one, or that of an earlier run."""
    folder = run.folder / "model"
    if not folder.is_dir():
        model = new_model(run.store, run.preset, run.tokenizer)
        model.config.provenance.update(provenance(run, preset_name))
        model.save(folder)
        return
    model = WorldModel.load(folder)
    check_same_run(model.config.provenance, run, preset_name)
    if restart is not None:
        forget(run, model, restart)
        model.save(folder)


def check_same_run(stored: dict[str, Any], run: Run, preset_name: str) -> None:
    """Refuse to go on with a run of another preset or of other episodes."""
    if stored.get("preset") != preset_name:
        raise ValueError(
            f"{str(run.folder)!r} holds a run of preset {stored.get('preset')!r}; continue it with "
            f"that preset, or give another `out` for {preset_name!r}."
        )
    if stored.get("tokenizer") != run.tokenizer:
        raise ValueError(
            f"{str(run.folder)!r} holds a run with `tokenizer` {stored.get('tokenizer')!r}; "
            f"continue it with that one, or give another `out` for {run.tokenizer!r}."
        )
    if stored.get("split") != json.loads(json.dumps(asdict(run.split))):
        raise ValueError(
            f"{str(run.folder)!r} holds a run on other episodes than {run.store.path} holds now; "
            "continue it with the same data, or give another `out`."
        )


def forget(run: Run, model: WorldModel, restart: str) -> None:
    """Undo stage `restart` and all after it: untrained parts, no checkpoints, no monitor."""
    fresh = new_model(run.store, run.preset, run.tokenizer)
    names = list(STAGES)
    undone = names[names.index(restart) :]
    for part in (part for name in undone for part in PARTS[name]):
        setattr(model, part, getattr(fresh, part))
    model.config.provenance["stages"] = names[: names.index(restart)]
    folders = [*undone, "rollout"] if "dynamics" in undone else undone
    for folder in (*folders, "model/monitor"):
        shutil.rmtree(run.folder / folder, ignore_errors=True)
