"""`worldmodel import`: from a published checkpoint to a folder that the other commands load."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from benchmarks.speed.plain_reference import PlainConfig, PlainDiT
from worldmodel import WorldModel
from worldmodel.c3_import import load_c3
from worldmodel.cli import main
from worldmodel.datasets.open_dataset import open_dataset
from worldmodel.datasets.rollout_log import RolloutLog
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.episodes.load import load_episode
from worldmodel.imagination import imagine_published
from worldmodel.networks.confidence_heads import ConfidenceConfig
from worldmodel.networks.images import resize, to_model
from worldmodel.runtime.live import OnlinePredictor
from worldmodel.training.config import LoopConfig
from worldmodel.training.presets import PRESETS

SIZES = ["--heads", "2", "--window", "4", "--height", "8", "--width", "8"]
UNTOLD = ["--spatial-rotary", "pixel", "--temporal-rotary", "standard", "--objective", "ddpm"]
Refused = Callable[..., str]


def save_checkpoint(path: Path, *, confidence_layers: int = 1, action_dim: int = 7) -> Path:
    config = PlainConfig(
        channels=3, dim=24, layers=1, heads=2, action_dim=action_dim,
        confidence_layers=confidence_layers,
    )  # fmt: skip
    torch.save({"ema": PlainDiT(config).randomize(0).state_dict(), "step": 1}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "ckpt.pt")


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder of 16 pixels to 3 x 8 x 8, with a shift. Not to be written to."""
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=3, shift_factor=0.3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def bring(checkpoint: Path, vae: Path, out: Path, *options: str, actions: str = "canonical") -> int:
    words = ["import", str(checkpoint), "--tokenizer", str(vae), "--out", str(out)]
    return main([*words, "--actions", actions, *SIZES, *options])


def test_an_imported_model_imagines_as_its_checkpoint(
    checkpoint: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring(checkpoint, vae, tmp_path / "model", "--camera", "front") == 0
    assert "C3, states its confidence" in capsys.readouterr().out
    model = WorldModel.load(tmp_path / "model")
    assert (model.config.cameras, model.config.image_size) == (("front",), (16, 16))
    network = load_c3(checkpoint, heads=2, window=4, height=8, width=8)
    g = torch.Generator().manual_seed(0)
    context, rows = torch.randn(1, 1, 1, 3, 8, 8, generator=g), torch.randn(1, 4, 7, generator=g)
    rows[:, 0] = 0
    direct = imagine_published(network, context, rows, epsilon=(0.3, 0.5))
    found = model.imagine(context, rows[:, 1:], epsilon=(0.3, 0.5))
    assert torch.equal(found.latents, direct.latents)
    assert torch.equal(found.confidence, direct.confidence)


def test_imagine_and_watch_load_it(
    checkpoint: Path,
    vae: Path,
    tmp_path: Path,
    make_scene: Callable[..., Trajectory],
    make_store: Callable[..., Path],
) -> None:
    store = make_store("few.zarr", *(make_scene(f"few/{n}", n, num_frames=7) for n in range(4)))
    assert bring(checkpoint, vae, tmp_path / "model", "--camera", "front") == 0
    data = ["--model", str(tmp_path / "model"), "--data", str(store)]
    log = str(tmp_path / "log.zarr")
    options = ["--num-steps", "2", "--episodes", "1", "--horizon", "4", "--out", log]
    assert main(["imagine", *data, *options]) == 0
    logged = RolloutLog.open(Path(log))
    confidence = logged.read(logged.rollouts()[0])["confidence"]
    assert 0.01 < np.ptp(confidence[4:].astype(float)) <= 1
    assert main(["calibrate", *data, "--horizon", "2", "--nuisance", "none"]) == 0
    assert main(["watch", *data, "--only", "few/0"]) in (0, 1)


def test_the_figures_of_c3_are_written_beside_the_right_ones(
    checkpoint: Path,
    vae: Path,
    scenes: Path,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bring(checkpoint, vae, tmp_path / "model", "--camera", "front") == 0
    data = ["imagine", "--model", str(tmp_path / "model"), "--data", str(scenes), "--episodes", "1"]
    data += ["--num-steps", "1", "--out"]
    assert main([*data, str(tmp_path / "whole.zarr"), "--start", "1", "--horizon", "20"]) == 0
    capsys.readouterr()
    page = ["--out", str(tmp_path / "page.html")]
    assert main(["report", str(tmp_path / "whole.zarr"), *page, "--c3", str(tmp_path / "c3")]) == 0
    assert "C3's ECE" in capsys.readouterr().out
    assert len(list((tmp_path / "c3" / "videos" / "train%2F0").glob("*.npy"))) == 30
    assert main([*data, str(tmp_path / "parts.zarr")]) == 0
    line = refused("report", tmp_path / "parts.zarr", *page, "--c3", tmp_path / "other")
    assert "imagine again with `--start 1` and a `--horizon` of at least 11." in line
    assert not (tmp_path / "other").exists()


def test_episodes_are_converted_to_worldgym_actions(
    vae: Path, scenes: Path, tmp_path: Path
) -> None:
    wide = save_checkpoint(tmp_path / "wide.pt", action_dim=10)
    assert bring(wide, vae, tmp_path / "model", "--camera", "front", actions="worldgym") == 0
    data = ["--model", str(tmp_path / "model"), "--data", str(scenes), "--episodes", "1"]
    assert main(["imagine", *data, "--num-steps", "1", "--out", str(tmp_path / "log.zarr")]) == 0
    log, episode = RolloutLog.open(tmp_path / "log.zarr"), open_dataset(scenes).episode("train/0")
    actions = log.read("train/0")["action"]
    assert actions.shape == (len(episode), 10)
    np.testing.assert_allclose(actions[:-1, :3], 35 * episode.actions[:-1, :3], rtol=1e-5)
    assert np.isnan(actions[-1]).all()  # nothing is commanded at the last frame
    np.testing.assert_allclose(actions[:-1, 6], 1 - 2 * episode.actions[:-1, 6], rtol=1e-4)


def test_a_run_folder_and_its_config_are_enough(vae: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run / "ckpt_000000010.pt")
    (run / "config.yaml").write_text("heads: 2\nn_frames: 6\ninput_h: 64\ninput_w: 96\n")
    words = ["import", str(run), "--tokenizer", str(vae), "--out", str(tmp_path / "model")]
    assert main([*words, "--actions", "bridge", "--rate-hz", "3"]) == 0
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["dynamics"]["window"], config["trained_horizon"]) == (6, 5)
    assert (config["dynamics"]["height"], config["dynamics"]["width"]) == (8, 12)
    assert (config["action_spec"]["name"], config["action_spec"]["rate_hz"]) == ("Bridge RLDS", 3.0)


def test_latents_go_without_the_shift(checkpoint: Path, vae: Path, tmp_path: Path) -> None:
    bring(checkpoint, vae, tmp_path / "model")
    model = WorldModel.load(tmp_path / "model")
    frames = torch.full((1, 1, 16, 16, 3), 200, dtype=torch.uint8)
    autoencoder = model.tokenizer.autoencoder
    with torch.no_grad():
        small = resize(to_model(frames[:, 0]), (16, 16))
        moments = autoencoder.encode(small).latent_dist
    wanted = moments.mode() * autoencoder.config.scaling_factor
    torch.testing.assert_close(model.encode(frames)[:, 0], wanted, atol=1e-5, rtol=0)


@pytest.fixture
def worldgym(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A WorldGym network without confidence, imported with guidance."""
    plain = save_checkpoint(tmp_path / "plain.pt", confidence_layers=0)
    options = ["--camera", "front", "--guidance", "3", *UNTOLD]
    assert bring(plain, vae, tmp_path / "model", *options) == 0
    printed = capsys.readouterr().out
    assert "WorldGym, no confidence" in printed
    assert "rotary positions pixel in space and standard in time, ddpm in 10 steps, guid" in printed
    return tmp_path / "model"


def test_what_the_file_does_not_tell_is_asked_for(
    vae: Path, tmp_path: Path, refused: Refused
) -> None:
    plain = save_checkpoint(tmp_path / "plain.pt", confidence_layers=0)
    words = ["import", plain, "--tokenizer", vae, "--out", tmp_path / "model", *SIZES]
    line = refused(*words, "--actions", "canonical", "--temporal-rotary", "standard")
    assert "tells `spatial_rotary` and `objective` of this WorldGym network" in line
    assert not (tmp_path / "model").exists()
    line = refused(
        "import", save_checkpoint(tmp_path / "c3.pt"), "--tokenizer", vae, "--out",
        tmp_path / "model", *SIZES, "--actions", "canonical", "--guidance", "3",
    )  # fmt: skip
    assert line == "`--guidance` must be 1 for a network with a confidence head, got 3.0."


def test_without_a_confidence_head_frames_are_imagined_and_confidence_is_not_invented(
    worldgym: Path,
    scenes: Path,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = WorldModel.load(worldgym)
    assert (model.sampling.guidance, model.sampling.num_steps) == (3.0, 10)
    data = ["--model", str(worldgym), "--data", str(scenes)]
    out = ["--episodes", "1", "--num-steps", "2", "--out", str(tmp_path / "log.zarr")]
    assert main(["imagine", *data, *out, "--json"]) == 0
    printed = capsys.readouterr()
    assert "note: the model has no confidence" in printed.err
    assert "guidance is unreliable" not in printed.err
    row = json.loads(printed.out)["table"][0]
    assert "imagined_db" in row
    assert "ece" not in row
    assert main(["imagine", *data, *out]) == 0  # the table
    log = RolloutLog.open(tmp_path / "log.zarr")
    rollout = log.read("train/0")
    assert log.attributes["confidence"] == "none"
    assert np.isnan(rollout["confidence"][4:]).all()
    assert main(["report", str(log.path), "--out", str(tmp_path / "page.html")]) == 0
    assert "Calibration" not in (tmp_path / "page.html").read_text()
    maps = ["--heatmaps", tmp_path / "maps", "--out", tmp_path / "page.html"]
    assert "no confidence to show" in refused("report", log.path, *maps)
    line = refused("calibrate", *data)
    assert f"`worldmodel train --stage confidence --model {worldgym} --data STORE`" in line


def test_a_confidence_head_is_trained_on_it_and_then_calibrated(
    worldgym: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = LoopConfig(steps=3, batch_size=2)
    tiny = replace(
        PRESETS["smoke"], confidence_loop=loop, horizon=2, longest_start=1, clip_frames=4,
        pair_stride=2, corrupted_copies=0, confidence=ConfidenceConfig(hidden=8),
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "tiny", tiny)
    before = WorldModel.load(worldgym)
    words = ["--preset", "tiny", "--stage", "confidence", "--model", str(worldgym)]
    run = tmp_path / "run"
    assert main(["train", *words, "--data", str(scenes), "--out", str(run)]) == 0
    model = WorldModel.load(run / "model")
    assert model.has_confidence
    assert (model.sampling, model.config.provenance["stages"]) == (
        before.sampling,
        ["tokenizer", "dynamics", "confidence"],
    )
    weights = model.dynamics.state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in before.dynamics.state_dict().items())
    data = ["--model", str(run / "model"), "--data", str(scenes)]
    assert main(["calibrate", *data, "--horizon", "2", "--nuisance", "none"]) == 0
    out = ["--out", str(tmp_path / "log.zarr"), "--horizon", "2", "--only", "train/0"]
    assert main(["imagine", *data, *out]) == 0
    confidence = RolloutLog.open(tmp_path / "log.zarr").read("train/0")["confidence"]
    assert np.isfinite(confidence).all()


def test_a_frame_is_paired_with_the_action_that_the_training_paired_it_with(
    vae: Path, scenes: Path, checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    bring(checkpoint, vae, tmp_path / "next", "--camera", "front")
    bring(checkpoint, vae, tmp_path / "same", "--camera", "front", "--pairing", "same")
    models = {name: WorldModel.load(tmp_path / name) for name in ("next", "same")}
    trajectory = open_dataset(scenes).episode("train/0")
    episodes = {name: load_episode(model, trajectory) for name, model in models.items()}
    stored = torch.from_numpy(np.array(trajectory.actions))
    actions, valid = episodes["same"].batch.actions[0], episodes["same"].batch.action_valid[0]
    assert torch.equal(episodes["next"].batch.actions[0], stored)
    assert torch.equal(actions[:-2], stored[1:-1])
    assert valid[:-2].all()
    assert not valid[-2:].any()  # nothing is commanded at the last frame
    context = models["same"].encode(episodes["same"].frames[:1])[None]
    found = models["same"].imagine(context, actions[None, :4], epsilon=())
    row = stored[:5].clone()
    row[0] = 0  # unknown
    network = models["next"].dynamics
    published = imagine_published(network, context, row[None])
    assert torch.equal(found.latents, published.latents)
    data = ["--model", tmp_path / "same", "--data", scenes, "--out", tmp_path / "log.zarr"]
    assert main([str(w) for w in ("imagine", *data, "--num-steps", 1, "--episodes", 1)]) == 0
    logged = RolloutLog.open(tmp_path / "log.zarr").read("train/0")["action"]
    np.testing.assert_array_equal(logged[1:-1], stored[1:-1])
    with pytest.raises(ValueError, match="cannot run live"):
        OnlinePredictor(models["same"], start=4, horizon=4)


def test_wrong_input_is_one_sentence_and_leaves_nothing(
    checkpoint: Path, vae: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "text.pt").write_text("hello\n")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(tmp_path / "four")  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    given = {"file": checkpoint, "vae": vae, "out": tmp_path / "new", "actions": "canonical"}
    wrong = {
        "No checkpoint at ": {"file": tmp_path / "none.pt"},
        "cannot be read as weights alone": {"file": tmp_path / "text.pt"},
        "holds no C3 or WorldGym network": {"file": tmp_path / "other.pt"},
        "there is no such folder": {"vae": tmp_path / "none"},
        "it has no config.json": {"vae": tmp_path / "empty"},
        "`tokenizer` makes latents of (4, 8, 8)": {"vae": tmp_path / "four"},
        "`--out` must be a new or empty folder": {"out": tmp_path / "taken"},
        "are rows of 10 numbers, but the checkpoint was trained on rows of 7": {
            "actions": "worldgym"
        },
    }
    for text, change in wrong.items():
        now = given | change
        line = refused(
            "import", now["file"], "--tokenizer", now["vae"], "--out", now["out"],
            "--actions", now["actions"], *SIZES,
        )  # fmt: skip
        assert text in line
        assert sorted(tmp_path.rglob("*")) == before
    line = refused(
        "import", checkpoint, "--tokenizer", vae, "--out", tmp_path / "new", "--actions", "bridge",
        "--rate-hz", "0",
    )  # fmt: skip
    assert line == "`--rate-hz` must be positive, got 0.0."


def test_a_full_disk_leaves_nothing_half_written(
    checkpoint: Path, vae: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("worldmodel.networks.tokenizer.Tokenizer.save", fail)
    line = refused(
        "import", checkpoint, "--tokenizer", vae, "--out", tmp_path / "model",
        "--actions", "canonical", *SIZES,
    )  # fmt: skip
    assert line == "No space left on device"
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]
