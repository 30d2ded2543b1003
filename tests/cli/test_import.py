"""`worldmodel import`: from a published checkpoint to a folder that the other commands load."""

import json
from collections.abc import Callable
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
from worldmodel.imagination import imagine_published
from worldmodel.networks.images import resize, to_model

SIZES = ["--heads", "2", "--window", "4", "--height", "8", "--width", "8"]
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
    assert main(["calibrate", *data, "--horizon", "2"]) == 0
    assert main(["watch", *data, "--only", "few/0"]) in (0, 1)


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


def test_without_a_confidence_head_imagine_is_refused(
    vae: Path, scenes: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = save_checkpoint(tmp_path / "plain.pt", confidence_layers=0)
    assert bring(plain, vae, tmp_path / "model") == 0
    assert "WorldGym, no confidence" in capsys.readouterr().out
    line = refused(
        "imagine", "--model", tmp_path / "model", "--data", scenes, "--out", tmp_path / "log.zarr"
    )
    assert line == (
        f"The model in '{tmp_path / 'model'}' is an imported checkpoint without a confidence "
        "head, which this command needs; in Python, `WorldModel.imagine` works without it."
    )


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
