import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.other_process import held_by_another_process
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.clips import LatentBatch, LatentClips, collate_latents, encode_store
from worldmodel.model import WorldModel
from worldmodel.networks.tokenizer import Tokenizer, TokenizerConfig
from worldmodel.training import run as training_run
from worldmodel.training.new_model import model_size, new_model
from worldmodel.training.presets import PRESETS, Preset
from worldmodel.training.stages import (
    FramePairs,
    fit_normalisers,
    train,
)

Store = Callable[..., ClipStore]


ALL_STAGES = ["tokenizer", "dynamics", "compositor", "pictures", "confidence", "judge"]


@pytest.fixture
def preset(micro: Preset, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The micro recipe, known by name."""
    monkeypatch.setitem(PRESETS, "micro", micro)
    monkeypatch.setitem(PRESETS, "micro-2", replace(micro, clip_frames=3))
    return micro


@pytest.mark.parametrize(
    ("changes", "stage", "needed"),
    [
        ({"pair_stride": 7}, "tokenizer", 8),
        ({"clip_frames": 9}, "dynamics", 9),
        ({"horizon": 8}, "confidence", 10),
    ],
)
def test_short_episodes_are_refused_before_anything_is_trained(
    make_store: Store, preset: Preset, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int], stage: str, needed: int, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setitem(PRESETS, "micro", replace(preset, **changes))
    store = make_store([6, 7, 6, 7])
    message = (
        rf"^Stage '{stage}' needs episodes of at least {needed} frames, but all [1-3] of its "
        r"split from .*data\.zarr are shorter \(the longest has 7\); add longer episodes or choose "
        r"a preset with shorter clips\.$"
    )
    with pytest.raises(ValueError, match=message):
        train(store, "micro", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frame_pairs_are_a_stride_apart_and_of_one_episode(make_store: Store) -> None:
    store = make_store([5, 2, 4])
    pairs = FramePairs(store, store.episode_ids, store.cameras, 3)
    assert len(pairs) == 2 + 0 + 1
    frames = {name: store.episode(name).frames["front"][:] for name in store.episode_ids}
    expected = [("episode-0", 0), ("episode-0", 1), ("episode-2", 0)]
    for pair, (name, start) in zip(pairs, expected, strict=True):
        np.testing.assert_array_equal(pair[:, 0], frames[name][[start, start + 3]])


def test_windows_of_latents_cover_each_episode_once() -> None:
    def episode(length: int, first: int) -> LatentBatch:
        rows = torch.arange(first, first + length)
        latents = rows.half()[None, :, None, None, None, None]
        actions = rows.float()[None, :, None].expand(1, length, 7)
        return LatentBatch(latents, actions, rows[None] % 2 == 0, rows.float()[None])

    clips = LatentClips([episode(4, 0), episode(2, 10), episode(5, 20)], 3)
    windows = [clips[i] for i in range(len(clips))]
    starts = [0, 1, 20, 21, 22]
    for window, start in zip(windows, starts, strict=True):
        expected = [float(start + i) for i in range(3)]
        assert window.latents.flatten().tolist() == expected
        assert window.latents.dtype == torch.float32
        assert window.actions[0, :, 0].tolist() == window.success[0].tolist() == expected
        assert window.action_valid[0].tolist() == [value % 2 == 0 for value in expected]
    with pytest.raises(IndexError):
        clips[5]
    assert torch.equal(collate_latents(windows[:2]).success, torch.tensor([[0.0, 1, 2], [1, 2, 3]]))


def test_latents_are_encoded_once_and_then_read(
    make_store: Store, make_model: Callable[..., WorldModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model = make_store([3, 4]), make_model()
    first = encode_store(model, store, store.episode_ids)
    frames = torch.from_numpy(store.episode(1).frames["front"][:])[:, None]
    torch.testing.assert_close(
        first[1].latents[0].float(), model.encode(frames), atol=1e-3, rtol=1e-3
    )
    np.testing.assert_array_equal(first[1].actions[0], store.episode(1).actions)
    assert first[1].success[0].tolist() == [0.0, 0.0, 1.0, 1.0]

    def refuse(frames: Any, **options: Any) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", refuse)
        again = encode_store(model, ClipStore.open(store.path), store.episode_ids)
        for one, other in zip(first, again, strict=True):
            assert all(
                torch.equal(getattr(one, name), value)
                for name, value in vars(other).items()
                if value is not None
            )
        model.tokenizer.mean += 1
        with pytest.raises(AssertionError, match="encoded again"):
            encode_store(model, store, store.episode_ids)


def test_normalisers_are_those_of_the_known_actions_and_of_the_changes(
    make_model: Callable[..., WorldModel],
) -> None:
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((1, 9, 1, 2, 4, 4), generator=generator).half()
    actions = 3 + 2 * torch.randn((1, 9, 7), generator=generator)
    valid = torch.arange(9)[None] > 2
    actions[:, 0] = 1e6
    fit_normalisers(model, [LatentBatch(latents, actions, valid, torch.zeros(1, 9))])
    torch.testing.assert_close(model.dynamics.condition.action_mean, actions[0, 3:].mean(0))
    torch.testing.assert_close(model.dynamics.condition.action_std, actions[0, 3:].std(0))
    change = latents.float().diff(dim=1)[0, :, 0]
    expected = torch.stack([change[:, c].std() for c in range(2)])
    torch.testing.assert_close(model.dynamics.change_std, expected)


def test_a_new_model_fits_its_store_and_is_the_same_every_time(
    make_store: Store, preset: Preset
) -> None:
    store = make_store([4, 4])
    state = torch.random.get_rng_state()
    one, other = new_model(store, preset), new_model(store, preset)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    assert one.config.image_size == (16, 16)
    assert model_size(store, replace(preset, image_height=24), store.cameras, 4) == (24, 24)
    assert one.config.action_spec.rate_hz == store.rate_hz


@pytest.fixture
def whole_run(make_store: Store, preset: Preset, tmp_path: Path) -> tuple[ClipStore, Path]:
    """A finished run of every stage on four episodes."""
    store = make_store([6, 7, 6, 7])
    train(store, "micro", tmp_path / "run")
    return store, tmp_path / "run"


def modified(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_whole_run_trains_every_part_and_continues_with_nothing_to_do(
    whole_run: tuple[ClipStore, Path], preset: Preset
) -> None:
    store, folder = whole_run
    model = WorldModel.load(folder / "model")
    assert model.config.provenance["stages"] == ALL_STAGES
    assert model.config.provenance["recipe"] == json.loads(
        json.dumps(preset, default=lambda value: vars(value))
    )
    untrained = new_model(store, preset)
    for part in ("tokenizer", "dynamics", "confidence", "judge", "action_judge"):
        before = dict(getattr(untrained, part).named_parameters())
        after = getattr(model, part).named_parameters()
        assert any(not torch.equal(value, before[name]) for name, value in after), part
    assert any(value.any() for value in model.compositor.parameters())
    assert model.picture_confidence.std.min() > 0
    assert model.tokenizer.std.min() > 0
    assert not torch.equal(model.tokenizer.std, torch.ones(2))

    before_again = modified(folder)
    again = train(store, "micro", folder)
    assert modified(folder) == before_again
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(
    whole_run: tuple[ClipStore, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped between the two parts of the dynamics' training, then continued."""
    store, folder = whole_run
    fit = training_run.fit

    def stop_at_rollout(*arguments: Any, **options: Any) -> Any:
        if arguments[3].name == "rollout":
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "fit", stop_at_rollout)
        with pytest.raises(KeyboardInterrupt):
            train(store, "micro", tmp_path / "stopped")
    model = train(store, "micro", tmp_path / "stopped")
    whole = WorldModel.load(folder / "model").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_restart_trains_a_stage_and_its_followers_anew(whole_run: tuple[ClipStore, Path]) -> None:
    store, folder = whole_run
    (folder / "model" / "monitor").mkdir()
    before = WorldModel.load(folder / "model").state_dict()
    files = modified(folder / "tokenizer") | modified(folder / "dynamics")
    model = train(store, "micro", folder, restart="confidence")
    # Trained from the same untrained start on the same draws, it ends at the same weights.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modified(folder / "tokenizer") | modified(folder / "dynamics") == files
    assert not (folder / "model" / "monitor").exists()


def test_a_run_that_another_process_writes_is_refused(whole_run: tuple[ClipStore, Path]) -> None:
    store, folder = whole_run
    before = modified(folder)
    with (
        held_by_another_process(folder / ".lock"),
        pytest.raises(ValueError, match="is being written by another process; wait until it ends"),
    ):
        train(store, "micro", folder, restart="judge")
    (folder / ".lock").unlink()
    assert modified(folder) == before


def test_a_failed_restart_keeps_the_model_and_its_monitor(
    whole_run: tuple[ClipStore, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    store, folder = whole_run
    (folder / "model" / "monitor").mkdir()
    monkeypatch.setattr(WorldModel, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        train(store, "micro", folder, restart="judge")
    assert (folder / "model" / "monitor").exists()
    assert "judge" in WorldModel.load(folder / "model").config.provenance["stages"]


def test_a_killed_restart_goes_on_with_the_restarted_stage(
    whole_run: tuple[ClipStore, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = whole_run

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            train(store, "micro", folder, restart="dynamics")
    left = WorldModel.load(folder / "model")
    assert left.config.provenance["stages"] == ["tokenizer"]
    assert not any((folder / name).exists() for name in ("dynamics", "rollout", "confidence"))
    assert torch.equal(left.dynamics.final.weight, torch.zeros_like(left.dynamics.final.weight))
    model = train(store, "micro", folder)
    assert model.config.provenance["stages"] == ALL_STAGES


def test_another_preset_data_or_stage_is_refused(
    whole_run: tuple[ClipStore, Path], make_store: Store
) -> None:
    store, folder = whole_run
    before = modified(folder)
    with pytest.raises(
        ValueError,
        match=r"^'.*run' holds a run of preset 'micro'; continue it with that preset, or give "
        r"another `out` for 'micro-2'\.$",
    ):
        train(store, "micro-2", folder)
    with pytest.raises(
        ValueError,
        match=r"^'.*run' holds a run on other episodes than those of .*other\.zarr; continue it "
        r"with the same data, or give another `out`\.$",
    ):
        train(make_store([6, 6, 7], "other.zarr"), "micro", folder)
    with pytest.raises(
        ValueError,
        match=r"^`restart` must be one of \['tokenizer', .*, 'judge'\], got 'judges'\.$",
    ):
        train(store, "micro", folder, restart="judges")
    assert modified(folder) == before


def test_another_preset_is_refused_before_the_first_stage_has_ended(
    make_store: Store, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    store = make_store([6, 7, 6, 7])
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            train(store, "micro", tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run of preset 'micro'; "):
        train(store, "micro-2", tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_one_model(make_store: Store, tmp_path: Path) -> None:
    """By `torchrun`: both end with the same weights, each having drawn its own half of a batch."""
    store = make_store([6, 7, 6, 7])
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from tests.model_fixtures import MICRO\n"
        "from worldmodel.training import presets, stages\n"
        "presets.PRESETS['micro'] = MICRO\n"
        "store = stages.ClipStore.open(sys.argv[2])\n"
        "model = stages.train(store, 'micro', pathlib.Path(sys.argv[3]))\n"
        "print('weights', float(sum(p.double().abs().sum() for p in model.parameters())))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [script, Path(__file__).parents[2], store.path, tmp_path / "run"]
    done = subprocess.run(
        [*launch, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    weights = [line for line in done.stdout.splitlines() if line.startswith("weights")]
    assert len(weights) == 2
    assert weights[0] == weights[1]
    assert (tmp_path / "run" / "rollout" / "step-2" / "state.pt").is_file()


def test_data_without_success_labels_have_no_judge(
    make_store: Store, make_trajectory: Callable[..., Trajectory], preset: Preset, tmp_path: Path
) -> None:
    store = make_store([])
    for index in range(3):
        episode = make_trajectory(f"episode-{index}", 6, index)
        store.add(replace(episode, success=None, signals={}))
    model = train(store, "micro", tmp_path / "run")
    assert not (tmp_path / "run" / "judge").exists()
    assert model.config.provenance["stages"] == ALL_STAGES[:-1]


def test_declared_outcomes_train_the_judge(
    make_store: Store, make_trajectory: Callable[..., Trajectory], preset: Preset, tmp_path: Path
) -> None:
    """Episodes of other lengths whose success is known only for the whole, as in most data."""
    store = make_store([])
    for index in range(4):
        episode = make_trajectory(f"episode-{index}", 6 + index, index)
        store.add(replace(episode, success=index % 2 == 0, signals={}))
    model = train(store, "micro", tmp_path / "run")
    assert model.config.provenance["stages"][-1] == "judge"
    assert all(weights.isfinite().all() for weights in model.judge.parameters())


def test_a_given_tokenizer_is_whitened_and_not_trained(
    make_store: Store, preset: Preset, tmp_path: Path
) -> None:
    """An autoencoder of other channels and stride than the preset's own."""
    store, folder = make_store([6, 7, 6, 7]), str(tmp_path / "autoencoder")
    config = TokenizerConfig(channels=4, widths=(4, 8), layers=(1, 1))
    given = Tokenizer.from_config(config)
    given.autoencoder.save_pretrained(folder)
    model = train(store, "micro", tmp_path / "run", tokenizer=folder)
    assert not (tmp_path / "run" / "tokenizer").exists()
    assert (model.config.dynamics.channels, model.config.dynamics.height) == (4, 8)
    expected = given.autoencoder.state_dict()
    for name, value in model.tokenizer.autoencoder.state_dict().items():
        assert torch.equal(value, expected[name])
    names = model.config.provenance["split"]["dynamics"]
    latents = torch.cat([e.latents.float() for e in encode_store(model, store, names)], 1)
    torch.testing.assert_close(latents.std((0, 1, 2, 4, 5)), torch.ones(4), atol=0.2, rtol=0)
    with pytest.raises(
        ValueError,
        match=r"holds a run with `tokenizer` '.*autoencoder'; continue it with that one, or give "
        r"another `out` for None\.$",
    ):
        train(store, "micro", tmp_path / "run")
