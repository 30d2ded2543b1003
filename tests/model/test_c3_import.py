"""Files of C3 checkpoints: supported forms, and errors for all others."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.speed.plain_reference import PlainConfig, PlainDiT
from worldmodel.c3_files import PUBLIC_SHAPE, PublicFile, public_file
from worldmodel.c3_import import import_c3, load_c3
from worldmodel.networks.c3 import C3Config

SMALL = {"heads": 2, "window": 4, "height": 4, "width": 4}
State = dict[str, Tensor]


def weights(seed: int = 0, *, confidence_layers: int = 1, dim: int = 16) -> State:
    config = PlainConfig(
        channels=2, dim=dim, layers=1, heads=2, action_dim=3, confidence_layers=confidence_layers
    )
    return PlainDiT(config).randomize(seed).state_dict()


def velocity_of(path: Path, **options: object) -> Tensor:
    """Velocity of an imported network for a fixed input."""
    network = load_c3(path, **(SMALL | options))  # type: ignore[arg-type]
    x = torch.linspace(-1, 1, 64).reshape(1, 2, 1, 2, 4, 4)
    with torch.no_grad():
        return network(x, torch.full((1, 2), 500.0), torch.ones(1, 2, 3))[0]


@pytest.fixture
def state() -> State:
    return weights()


@pytest.fixture
def expected(state: State, tmp_path: Path) -> Tensor:
    torch.save(state, tmp_path / "expected.pt")
    return velocity_of(tmp_path / "expected.pt")


FORMS: dict[str, Callable[[State], object]] = {
    "average beside weights": lambda s: {
        "model": weights(9), "ema": s, "optimizer": {"state": {}, "lr": 1e-3}, "step": 7,
    },
    "weights without average": lambda s: {"model": s, "step": 7},
    "from several GPUs": lambda s: {f"module.{name}": value for name, value in s.items()},
    "both": lambda s: {"ema": {f"module.{name}": value for name, value in s.items()}},
    "compiled": lambda s: {f"_orig_mod.{name}": value for name, value in s.items()},
    "compiled on several GPUs": lambda s: {
        f"module._orig_mod.{name}": value for name, value in s.items()
    },
    "compiled blocks": lambda s: {
        name.replace("s_block.", "s_block._orig_mod."): value for name, value in s.items()
    },
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "state_dict of a wrapper": lambda s: {
        "state_dict": {f"model._orig_mod.{name}": value for name, value in s.items()}
    },
    "wrapped twice": lambda s: {"ema": {"state_dict": s, "decay": 0.999}},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_is_read(
    state: State, expected: Tensor, tmp_path: Path, form: str
) -> None:
    torch.save(FORMS[form](state), tmp_path / "form.pt")
    assert torch.equal(velocity_of(tmp_path / "form.pt"), expected)


def test_old_files_and_safetensors_are_read(state: State, expected: Tensor, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "weights.safetensors")
    assert torch.equal(velocity_of(tmp_path / "old.pt"), expected)
    assert torch.equal(velocity_of(tmp_path / "weights.safetensors"), expected)


def test_half_precision_becomes_single(state: State, expected: Tensor, tmp_path: Path) -> None:
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "half.pt")
    network = load_c3(tmp_path / "half.pt", **SMALL)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training
    torch.testing.assert_close(velocity_of(tmp_path / "half.pt"), expected, atol=0.02, rtol=0)


def test_of_a_run_the_last_checkpoint_is_read_as_its_config_says(
    state: State, expected: Tensor, tmp_path: Path
) -> None:
    for step, stored in ((999, weights(5)), (20000, state), (1000, weights(6))):
        torch.save({"ema": stored}, tmp_path / f"ckpt_{step}.pt")
    torch.save(weights(7), tmp_path / "ckpt_best.pt")
    (tmp_path / "config.yaml").write_text(
        "heads: 2\nn_frames: 4\ninput_h: 32\ninput_w: 32\nwindow_len: null\nlr: 8e-5\n"
    )
    network = load_c3(tmp_path)
    assert network.config == C3Config(
        channels=2, action_dim=3, patch=2, dim=16, layers=1, confidence_layers=1,
        heads=2, window=4, height=4, width=4,
    )  # fmt: skip
    assert torch.equal(velocity_of(tmp_path), expected)
    assert load_c3(tmp_path, window=7, heads=4).config.window == 7  # arguments override the config


UNTOLD = {"spatial_rotary": "pixel", "temporal_rotary": "standard", "objective": "ddpm"}


@pytest.mark.parametrize(("confidence_layers", "window"), [(0, 20), (2, 10)])
def test_what_nothing_tells_is_as_published(
    tmp_path: Path, confidence_layers: int, window: int
) -> None:
    torch.save(weights(confidence_layers=confidence_layers, dim=64), tmp_path / "alone.pt")
    given = {} if confidence_layers else UNTOLD | {"spatial_rotary": "standard"}
    config = load_c3(tmp_path / "alone.pt", **given).config
    assert (config.heads, config.window, config.height, config.width) == (16, window, 32, 32)
    assert config.confidence_layers == confidence_layers
    assert (config.spatial_rotary, config.temporal_rotary) == ("standard", "standard")


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def trapped(path: Path) -> None:
    torch.save({"model": weights(), "extra": Trap(path.parent / "sprung")}, path)


def trapped_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(path.parent / "sprung"), protocol=2))


def truncated(path: Path) -> None:
    torch.save(weights(), path)
    path.write_bytes(path.read_bytes()[:-200])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "trap": trapped,
    "trapped pickle": trapped_pickle,
    "whole network": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "truncated": truncated,
    "text": lambda path: path.write_text("hello\n"),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(60, 160))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_of_more_or_less_than_weights_is_refused_and_runs_nothing(
    tmp_path: Path, damage: str
) -> None:
    DAMAGE[damage](tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt' cannot be read as weights alone: "):
        load_c3(tmp_path / "bad.pt")
    assert not (tmp_path / "sprung").exists()


def test_the_trap_would_have_sprung(tmp_path: Path) -> None:
    trapped(tmp_path / "bad.pt")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "sprung").is_dir()


def test_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all")
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        load_c3(tmp_path / "bad.safetensors")


def without(name: str) -> Callable[[State], object]:
    return lambda s: {key: value for key, value in s.items() if key != name}


def with_shape(name: str, *shape: int) -> Callable[[State], object]:
    return lambda s: s | {name: torch.zeros(shape)}


QKV = "blocks.0.s_block.attn.qkv_proj.weight"
WRONG: dict[str, tuple[Callable[[State], object], str]] = {
    "another network": (lambda s: {"conv.weight": torch.zeros(2)}, "no C3 or WorldGym network"),
    "a list": (lambda s: [1, 2], "must hold a state dict, got a list"),
    "numbers": (lambda s: {"step": 3}, "must hold a state dict, got a dict"),
    "a missing key": (without(QKV), f"{QKV} is missing"),
    "a missing half": (without("final_layer_conf_head.linear.bias"), "conf_head.*is missing"),
    "an unused key": (with_shape("pos_embed", 3), "weights of another network, such as pos_embed"),
    "a linear x_proj": (with_shape("x_proj.weight", 16, 8), "x_proj.weight is missing or has"),
    "a wide qkv": (with_shape(QKV, 48, 17), r"qkv_proj.weight has shape \(48, 17\), which does"),
    "an odd qkv": (with_shape(QKV, 47, 16), r"qkv_proj.weight has shape \(47, 16\), which does"),
    "an odd read-out": (with_shape("final_layer.linear.bias", 7), r"linear.bias has shape \(7,\)"),
    "a transposed map": (
        with_shape("blocks.0.t_block.ffwd.0.weight", 16, 64), r"ffwd.0.weight has shape \(16, 64\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_other_networks_are_refused(state: State, tmp_path: Path, wrong: str) -> None:
    change, match = WRONG[wrong]
    torch.save(change(state), tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=rf"wrong\.pt'.*{match}") as error:
        load_c3(tmp_path / "wrong.pt", **SMALL)
    assert "\n" not in str(error.value)


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing.pt"):
        with pytest.raises(ValueError, match=f"No checkpoint at '{place}'"):
            load_c3(place)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("heads: [", "is not readable YAML"),
        ("- a\n- b", "expected `object`, got `array`"),
        ("heads: many", "`heads`: expected `int | null`, got `str`"),
        ("just words", "expected `object`, got `str`"),
        ("heads: 0", "`heads`: expected `int` >= 1"),
        ("timesteps: 500", "`timesteps` must be 1000"),
        ("horizon: 4", r"`horizon` must be 1 \(frames are sampled one by one"),
        ("vae_type: cosmos", "`vae_type` must be sd"),
        ("frame_skip: 2", "`frame_skip` must be 1"),
        ("heads: [2]", "`heads`: expected `int | null`, got `array`"),
        ("cfg: .nan", "`cfg`: expected a finite number"),
        ("1: 2", "expected `str`"),
        ("other: " + "[" * 5000, "not readable YAML|nested too deeply"),
        ("layers: 2", "`layers` is 2, but the weights in ckpt_1.pt have 1"),
        ("action_dim: 10", "`action_dim` is 10, but the weights"),
        ("patch_size: 4", "`patch_size` is 4, but the weights"),
        ("model_dim: 99", "`model_dim` is 99, but the weights"),
        ("enable_confidence_prediction: false", "_prediction` is False, but the weights"),
    ],
)
def test_a_config_that_is_damaged_or_unsupported_is_refused(
    state: State, tmp_path: Path, text: str, match: str
) -> None:
    torch.save(state, tmp_path / "ckpt_1.pt")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml.*{match}"):
        load_c3(tmp_path)


def test_a_config_sets_window_steps_and_average(
    state: State, expected: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": state, "ema": weights(9)}, tmp_path / "ckpt_1.pt")
    (tmp_path / "config.yaml").write_text(
        "n_frames: 9\nwindow_len: 5\nsampling_timesteps: 7\nuse_ema: false\nhorizon: 1\n"
        "timesteps: 1000\nvae_type: SD\nrope: golden\nseed: 1\n"
    )
    imported = import_c3(tmp_path, **SMALL)
    assert import_c3(tmp_path, heads=2, height=4, width=4).network.config.window == 5
    assert (imported.sampling.num_steps, imported.sampling.guidance) == (7, 1.0)
    assert torch.equal(velocity_of(tmp_path / "ckpt_1.pt"), expected)
    assert "unknown keys are ignored: rope." in caplog.text


def test_of_a_nameless_worldgym_file_the_untold_is_asked_for(tmp_path: Path) -> None:
    torch.save(weights(confidence_layers=0), tmp_path / "plain.pt")
    text = "tells `spatial_rotary` and `temporal_rotary` and `objective` of this WorldGym network"
    with pytest.raises(ValueError, match=text):
        load_c3(tmp_path / "plain.pt", **SMALL)
    with pytest.raises(ValueError, match="tells `objective` of this"):
        load_c3(tmp_path / "plain.pt", **SMALL, **UNTOLD | {"objective": None})
    config = load_c3(tmp_path / "plain.pt", **SMALL, **UNTOLD).config
    assert {name: getattr(config, name) for name in UNTOLD} == UNTOLD
    torch.save(weights(confidence_layers=0), tmp_path / "bridge_v2_ckpt.pt")
    with pytest.raises(ValueError, match="or keep the name of a public file"):
        load_c3(tmp_path / "bridge_v2_ckpt.pt", **SMALL)  # the name is chance: another shape


@pytest.mark.parametrize(
    ("name", "spatial", "guidance"),
    [
        ("bridge_v2_ckpt.pt", "pixel", 1.0),
        ("200k_20frame_cfg_bridgev2_ckpt.pt", "standard", 3.0),
        ("mixed_openx_9robots_20frames_0p1actiondropout_580ksteps.pt", "standard", 3.0),
    ],
)
def test_public_files_are_known_by_name_and_shape(name: str, spatial: str, guidance: float) -> None:
    known = public_file(Path(name), PUBLIC_SHAPE | {"confidence_layers": 0})
    assert known == PublicFile(spatial_rotary=spatial, guidance=guidance)
    assert (known.temporal_rotary, known.objective) == ("standard", "ddpm")


def repeated(state: State) -> State:
    """A tensor of a terabyte, from one number."""
    return state | {"x_proj.weight": torch.zeros(1).expand(2**30, 2, 8, 8)}


def sparse(state: State) -> State:
    return state | {"x_proj.bias": torch.zeros(2**12, 2**12).to_sparse()}


@pytest.mark.parametrize(
    ("claim", "match"),
    [
        (repeated, r"x_proj.weight claims 5.498e\+11 bytes, but the file holds 4 of it"),
        (sparse, "x_proj.bias must be a dense tensor of floats"),
        (lambda s: s | {"x_proj.bias": torch.zeros(16, dtype=torch.int64)}, "tensor of floats"),
    ],
)
def test_claimed_sizes_are_checked_before_memory_is_taken(
    state: State, tmp_path: Path, claim: Callable[[State], State], match: str
) -> None:
    torch.save(claim(state), tmp_path / "claim.pt")
    with pytest.raises(ValueError, match=match):
        load_c3(tmp_path / "claim.pt", **SMALL)


def test_a_wide_first_layer_alone_takes_no_memory(tmp_path: Path) -> None:
    """400 kB of weights that would make a network of terabytes."""
    wide = {"x_proj.weight": torch.zeros(100_000, 1, 1, 1), "x_proj.bias": torch.zeros(100_000)}
    torch.save(wide | {"action_embedder.weight": torch.zeros(1, 1)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"wide\.pt': x_proj.weight has|is missing"):
        load_c3(tmp_path / "wide.pt", heads=1, **UNTOLD)


def test_a_compressed_archive_is_refused(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "plain.pt")
    with (
        ZipFile(tmp_path / "plain.pt") as plain,
        ZipFile(tmp_path / "bomb.pt", "w", ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        load_c3(tmp_path / "bomb.pt", **SMALL)


def test_two_networks_in_one_state_dict_are_refused(state: State, tmp_path: Path) -> None:
    both = {
        f"{part}.{name}": value for part in ("model", "teacher") for name, value in state.items()
    }
    torch.save({"state_dict": both}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=r"several networks \(under 'model.', 'teacher.'\)"):
        load_c3(tmp_path / "both.pt", **SMALL)
