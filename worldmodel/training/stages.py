"""Training stages: tokenizer, dynamics, compositor, both confidences, success classifiers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from worldmodel.datasets.clip_dataset import found_cameras, stack_views
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.dataset import Dataset as Episodes
from worldmodel.episodes.clips import (
    LatentBatch,
    LatentClips,
    cache_latents,
    collate_latents,
    encode_store,
)
from worldmodel.episodes.corruptions import corrupted_episode
from worldmodel.model import WorldModel
from worldmodel.networks.c3 import C3Network
from worldmodel.networks.dynamics import Dynamics
from worldmodel.networks.images import resize, to_model
from worldmodel.networks.recurrent import RecurrentDynamics
from worldmodel.training.data_report import data_report
from worldmodel.training.fine_tune import Start, fitted_settings, keep_scales, scales
from worldmodel.training.loop import Validate
from worldmodel.training.memory import plan
from worldmodel.training.objectives import (
    ConfidenceObjective,
    DynamicsObjective,
    SuccessObjective,
)
from worldmodel.training.parallel import all_processes, is_sharded
from worldmodel.training.picture_stages.compositor_stage import train_compositor
from worldmodel.training.picture_stages.picture_stage import train_picture_confidence
from worldmodel.training.rollout_objective import RolloutObjective
from worldmodel.training.run import Run, prepare
from worldmodel.training.settings import Settings, resolve
from worldmodel.training.splits import check_lengths, split_episodes
from worldmodel.training.stopping import Stop
from worldmodel.training.tokenizer_objective import TokenizerObjective
from worldmodel.training.trackers import check_trackers
from worldmodel.training.validation import (
    NUM_CLIPS,
    HeldOut,
    held_out,
    roll_out,
    show_reliability,
    show_rollouts,
)

FROM_START = 0.25
"""Share of the clips that begin with the first frame of an episode, where evaluations begin."""
FAMILIAR_CLIPS = 64
"""Clips whose rollouts fit the `familiarity` features of a confidence head."""


class FramePairs(Dataset[torch.Tensor]):
    """Pairs of frames `stride` apart from one camera, uint8 [2, 1, height, width, 3].

    All episodes stay in memory at their original size.
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


def train_tokenizer(run: Run, model: WorldModel) -> bool:
    """Train the autoencoder on frame pairs, unless a trained one is set; then fit its whitening."""
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
    """Latents of the named episodes; the main process encodes and caches them."""
    if all_processes().is_main_process:
        cache_latents(model, run.store, names, until=run.stop.asked)
    run.stop.check("while episodes were encoded")
    return encode_store(model, run.store, names)


def fit_normalisers(model: WorldModel, episodes: Sequence[LatentBatch]) -> None:
    """Fit the scales of actions and of frame-to-frame changes to the training episodes."""
    actions = torch.cat([e.actions[e.action_valid] for e in episodes])
    dynamics = own_dynamics(model)
    condition = dynamics.condition
    condition.action_mean.copy_(actions.mean(0))
    condition.action_std.copy_(actions.std(0).clamp_min(1e-4))
    changes = torch.cat([changes_of(e) for e in episodes])
    dynamics.change_std.copy_(changes.std((0, 2, 3)).clamp_min(1e-3))
    states = [e.states[0] for e in episodes if e.states is not None]
    if dynamics.pose is not None and states:
        rows = torch.cat(states)
        dynamics.pose.fit(rows[rows.isfinite().all(1)])
    if isinstance(dynamics, RecurrentDynamics):
        objects = [e.objects[0, :, :3] for e in episodes if e.objects is not None]
        if objects:
            dynamics.readout.fit(torch.cat(objects))


def own_dynamics(model: WorldModel) -> Dynamics | RecurrentDynamics:
    """Dynamics of a model made by `new_model`."""
    assert not isinstance(model.dynamics, C3Network), "published networks are not trained here"
    return model.dynamics


def changes_of(episode: LatentBatch) -> Float[Tensor, "changes channel h w"]:
    """Frame-to-frame change of every view that is valid in both frames."""
    change, view_mask = episode.latents.float().diff(dim=1), episode.view_valid
    if view_mask is None:
        return change.flatten(0, 2)
    return change[view_mask[:, 1:] & view_mask[:, :-1]]


def train_dynamics(run: Run, model: WorldModel) -> bool:
    """Train the dynamics.

    A recurrent network is trained through its own rollouts. A transformer is trained by teacher
    forcing first, then with its own predictions as context.
    """
    preset = run.preset
    episodes = latents_of(run, model, run.split.dynamics)
    trained = scales(model.dynamics)
    fit_normalisers(model, episodes)
    if run.start is not None:
        keep_scales(model.dynamics, trained)
    clips = LatentClips(
        episodes,
        preset.clip_frames,
        short=preset.image_share > 0,
        from_start=FROM_START,
    )
    validate = make_validator(run, model, run.split.confidence, show_rollouts)
    shares = {"action_dropout": preset.action_dropout, "image_share": preset.image_share}
    dynamics = own_dynamics(model)
    if isinstance(dynamics, RecurrentDynamics):
        objective = RolloutObjective(dynamics, longest_start=preset.longest_start)
        run.fit(objective, clips, preset.dynamics_loop, name="dynamics", validate=validate)
        return True
    teacher_forced = DynamicsObjective(dynamics, own_context=0.0, passes=1, **shares)
    run.fit(teacher_forced, clips, preset.dynamics_loop, name="dynamics", validate=validate)
    own_context = DynamicsObjective(
        dynamics, own_context=0.8, passes=preset.rollout_passes, pure_noise=0.8, **shares
    )
    run.fit(own_context, clips, preset.rollout_loop, name="rollout", validate=validate)
    return True


def train_confidence(run: Run, model: WorldModel) -> bool:
    """Train the confidence head on rollouts over episodes that the dynamics never saw."""
    preset, names = run.preset, run.split.confidence
    episodes, length = latents_of(run, model, names), preset.horizon + preset.longest_start
    if model.config.confidence.familiarity:
        fit_familiarity(model, LatentClips(episodes, length), start=preset.longest_start)
    clips = LatentClips(episodes + corrupted_copies(run, model, names), length)
    objective = ConfidenceObjective(model, longest_start=preset.longest_start)
    validate = make_validator(run, model, run.split.untouched, show_reliability)
    run.fit(objective, clips, preset.confidence_loop, name="confidence", validate=validate)
    return True


def fit_familiarity(model: WorldModel, clips: LatentClips, *, start: int) -> None:
    """Fit the head's familiarity features to rollouts over evenly spaced clips."""
    assert model.confidence is not None, "nothing to fit: the network has its own confidence head"
    every = -(-len(clips) // FAMILIAR_CLIPS)
    seen = HeldOut(collate_latents([clips[i] for i in range(0, len(clips), every)]), start)
    features = roll_out(model, seen, epsilon=()).features
    model.confidence.fit_familiarity(features.flatten(0, 1))


def corrupted_copies(run: Run, model: WorldModel, names: Sequence[str]) -> list[LatentBatch]:
    """`corrupted_copies` encoded copies of the named episodes, each with new corruptions."""
    copies: list[LatentBatch] = []
    for _, name in product(range(run.preset.corrupted_copies), names):
        run.stop.check("while corrupted episodes were encoded")
        rng = np.random.default_rng([run.preset.confidence_loop.seed, len(copies)])
        copies.append(corrupted_episode(model, run.store.episode(name), rng))
    return copies


def make_validator(
    run: Run,
    model: WorldModel,
    names: Sequence[str],
    show: Callable[[WorldModel, HeldOut, Any, int], float | None],
) -> Validate | None:
    """Validation on the first episodes that are long enough; None if all are too short."""
    preset = run.preset
    length = preset.horizon + preset.longest_start
    long = [name for name in names if run.data.summary(name).num_frames >= length][:NUM_CLIPS]
    seen = held_out(
        latents_of(run, model, long), start=preset.longest_start, horizon=preset.horizon
    )
    return None if seen is None else partial(show, model, seen)


def train_judge(run: Run, model: WorldModel) -> bool:
    """Train the success classifiers if the data have success labels."""
    episodes = [
        e for e in latents_of(run, model, run.split.dynamics) if not e.success[0, -1].isnan()
    ]
    if not episodes:
        return False
    length = min(e.latents.shape[1] for e in episodes)
    # Where only the outcome is known, the last frame is the only one with a label.
    episodes = [
        e.cut(length, start=e.latents.shape[1] - length) if e.success.isnan().any() else e
        for e in episodes
    ]
    objective = SuccessObjective(model.judge, model.action_judge)
    run.fit(objective, LatentClips(episodes, length), run.preset.judge_loop, name="judge")
    return True


STAGES: dict[str, Callable[[Run, WorldModel], bool]] = {
    "tokenizer": train_tokenizer,
    "dynamics": train_dynamics,
    "compositor": train_compositor,
    "pictures": train_picture_confidence,
    "confidence": train_confidence,
    "judge": train_judge,
}
"""Stages of a training run, in the order of their dependencies; False if one did not train."""
RETRAINED = ("compositor", "pictures", "confidence", "judge")
"""Stages that may be trained again on a finished model."""


def train(  # noqa: PLR0913 - all settings of a run, by name
    store: ClipStore,
    preset: str | Settings,
    folder: Path,
    *,
    restart: str | None = None,
    stage: str | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    init: Start | None = None,
    max_hours: float | None = None,
    log_with: Sequence[str] = (),
) -> WorldModel:
    """Run every stage that `folder` does not hold yet and save the model to `folder/model`.

    SIGTERM or the end of `max_hours` stops the run after the current step; calling it again
    resumes.

    Args:
        store: Episodes to train on.
        preset: Name of a preset, or resolved settings.
        folder: Run folder; an existing run is continued.
        restart: Stage to train again from scratch, with all later ones.
        stage: The only stage to train; earlier ones must be trained.
        model: Folder or name of a trained model; only `stage` is trained again, the other parts
            are kept.
        tokenizer: Folder or hub name of a trained autoencoder; only its whitening is fitted.
        init: Trained model whose weights all stages start from; None: untrained weights.
        max_hours: Time limit; None: no limit.
        log_with: Experiment trackers, of `TRACKERS`.

    Raises:
        TrainingStopped: the run stopped early, with everything saved.
        ValueError: too few or too short episodes, an unknown preset or stage, a stage before
            `stage` is missing, or `folder` holds another run.
    """
    settings = resolve(preset) if isinstance(preset, str) else preset
    check_stages(restart=restart, stage=stage, model=model)
    check_start(init, model=model, tokenizer=tokenizer)
    check_trackers(log_with)
    if init is not None:
        settings = fitted_settings(settings, WorldModel.load(init.source), store)
    with Stop(max_hours) as stop:
        split = split_episodes(store, settings.preset.shares)
        run = Run(
            store, settings, folder, split, stop, tokenizer, model, init, tuple(log_with)
        )  # fmt: skip
        check_lengths(run.data, run.preset, run.split)
        processes = all_processes()
        if processes.is_main_process:
            prepare(run, stage=stage, restart=restart)
        processes.wait_for_everyone()
        trained = WorldModel.load(folder / "model").to(processes.device)
        if processes.is_main_process:
            for line in data_report(store, run.data, run.preset, split, trained.config.cameras):
                tqdm.write(line, file=sys.stderr)
        done = trained.config.provenance["stages"]
        remaining = [name for name in ([stage] if stage else STAGES) if name not in done]
        if processes.is_main_process and "dynamics" in remaining:
            num_processes, sharded = processes.num_processes, is_sharded()
            summary = plan(trained, run.preset, processes=num_processes, is_sharded=sharded)
            tqdm.write(summary, file=sys.stderr)
        for name in remaining:
            if not STAGES[name](run, trained):
                continue
            done.append(name)
            if processes.is_main_process:
                trained.save(folder / "model")
            processes.wait_for_everyone()
    return trained.eval()


def check_start(init: Start | None, *, model: str | None, tokenizer: str | None) -> None:
    """Raise if the model to fine-tune is named along with another start."""
    others = {"model": model, "tokenizer": tokenizer}
    if init is not None and (named := [name for name, value in others.items() if value]):
        raise ValueError(f"`{named[0]}` must be left out with `init`, got {others[named[0]]!r}.")


def check_stages(*, restart: str | None, stage: str | None, model: str | None) -> None:
    """Raise if `restart`, `stage` and `model` name unknown stages or contradict each other."""
    for name, value in (("restart", restart), ("stage", stage)):
        if value is not None and value not in STAGES:
            raise ValueError(f"`{name}` must be one of {list(STAGES)}, got {value!r}.")
    if stage and restart and stage != restart:
        raise ValueError(
            f"`restart` must equal `stage`, {stage!r}, when both are set, got {restart!r}."
        )
    if model is not None and stage not in RETRAINED:
        raise ValueError(
            f"`model` needs a `stage` of {', '.join(RETRAINED)}, the part to train again, got "
            f"{stage!r}."
        )
