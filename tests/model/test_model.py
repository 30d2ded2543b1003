import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.other_process import held_by_another_process
from worldmodel import model as module
from worldmodel.checkpoint import checkpoint_folder
from worldmodel.imagination import Imagined
from worldmodel.model import WorldModel
from worldmodel.model_config import ModelConfig
from worldmodel.networks.images import resize, to_model
from worldmodel.networks.tokenizer import Tokenizer, TokenizerConfig

Build = Callable[..., WorldModel]


def roll(model: WorldModel, **options: Any) -> Imagined:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn((2, 2, 1, 2, 4, 4), generator=generator)
    actions = torch.randn((2, 5, 7), generator=generator)
    return model.imagine(context, actions, epsilon=(0.1, 1.0), **options)


def assert_same(one: Imagined, other: Imagined) -> None:
    given = {name: value for name, value in vars(one).items() if value is not None}
    assert set(given) == {name for name, value in vars(other).items() if value is not None}
    assert all(torch.equal(value, getattr(other, name)) for name, value in given.items())


@pytest.fixture
def saved(make_model: Build, tmp_path: Path) -> Path:
    make_model().save(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_imagines_the_same(make_model: Build, tmp_path: Path) -> None:
    model = make_model(patch=2)
    model.config.provenance["note"] = {"steps": 3}
    model.save(tmp_path / "deep" / "model")
    loaded = WorldModel.load(tmp_path / "deep" / "model")
    assert loaded.config == model.config
    assert not loaded.training
    assert_same(roll(loaded), roll(model))
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    names = {path.name for path in (tmp_path / "deep").rglob("*")}
    assert not any(name.endswith((".pkl", ".bin", ".pt", ".partial", ".old")) for name in names)


def test_a_model_saved_in_half_precision_imagines_nearly_the_same(
    make_model: Build, saved: Path, tmp_path: Path
) -> None:
    model = make_model()
    model.save(tmp_path / "half", dtype=torch.float16)
    half = WorldModel.load(tmp_path / "half")
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    torch.testing.assert_close(roll(half).latents, roll(model).latents, atol=0.05, rtol=0.05)
    sizes = [
        (folder / "weights.safetensors").stat().st_size for folder in (tmp_path / "half", saved)
    ]
    assert sizes[0] < 0.6 * sizes[1]


def test_defaults_of_imagine_are_what_they_say(make_model: Build) -> None:
    model = make_model()
    known = torch.ones((2, 5), dtype=torch.bool)
    assert_same(roll(model), roll(model, action_valid=known, seeds=[0, 1]))
    assert roll(model).confidence.shape == (2, 4, 1, 2, 4, 4, 2)


def test_saving_again_keeps_the_monitor_and_the_card(make_model: Build, saved: Path) -> None:
    (saved / "monitor").mkdir()
    (saved / "monitor" / "thresholds.json").write_text("{}")
    (saved / "README.md").write_text("# Card")
    (saved / "stray").write_text("not ours")
    model = make_model()
    model.dynamics.change_std += 1
    model.save(saved)
    assert (saved / "monitor" / "thresholds.json").read_text() == "{}"
    assert (saved / "README.md").read_text() == "# Card"
    assert not (saved / "stray").exists()
    loaded = WorldModel.load(saved)
    assert torch.equal(loaded.dynamics.change_std, model.dynamics.change_std)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_all_files_have_the_permissions_of_the_config(saved: Path) -> None:
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {path.stat().st_mode for path in files} == {(saved / "config.json").stat().st_mode}


@pytest.mark.parametrize("broken", ["save_file", "copy_if_present"])
def test_a_failed_save_leaves_the_old_checkpoint_whole(
    make_model: Build, saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("No space left on device")

    before = roll(WorldModel.load(saved))
    changed = make_model()
    changed.dynamics.change_std += 1
    with monkeypatch.context() as patch:
        patch.setattr(module, broken, fail)
        with pytest.raises(OSError, match="No space left on device"):
            changed.save(saved)
    assert_same(roll(WorldModel.load(saved)), before)
    changed.save(saved)  # what the failure left behind is in nobody's way
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("complete", [True, False])
def test_a_save_killed_between_its_renames_is_finished_on_load(
    make_model: Build, saved: Path, complete: bool
) -> None:
    before, changed = WorldModel.load(saved).dynamics.change_std, make_model()
    changed.dynamics.change_std += 1
    saved.rename(saved.with_name("model.old"))
    if complete:
        changed.save(saved.with_name("model.partial"))
    loaded = WorldModel.load(saved).dynamics.change_std
    assert torch.equal(loaded, before + 1 if complete else before)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_saving_finishes_a_killed_save_of_the_monitor(make_model: Build, saved: Path) -> None:
    (saved / "monitor.old").mkdir()
    (saved / "monitor.partial").mkdir()
    (saved / "monitor.partial" / "new").touch()
    make_model().save(saved)
    assert [path.name for path in (saved / "monitor").iterdir()] == ["new"]


def test_a_checkpoint_that_another_process_writes_is_refused(
    make_model: Build, saved: Path
) -> None:
    with held_by_another_process(saved.with_name(".model.lock")):
        with pytest.raises(ValueError, match="model is being written by another process; wait"):
            make_model().save(saved)
        WorldModel.load(saved)
    make_model().save(saved)  # the lock of a killed process has no effect


def test_a_name_finds_a_shipped_checkpoint(
    make_model: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("worldmodel.checkpoint.SHIPPED", tmp_path)
    make_model().save(tmp_path / "toy")
    assert checkpoint_folder("toy") == tmp_path / "toy"
    with pytest.raises(
        ValueError,
        match=r"^No checkpoint in 'tabeltop' \(no config\.json there\); shipped checkpoints: "
        r"\['toy'\]\.$",
    ):
        WorldModel.load("tabeltop")


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^No checkpoint in '.*' \(no config\.json there\)"):
        WorldModel.load(tmp_path)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads((folder / "config.json").read_text())
    change(stored)
    (folder / "config.json").write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(format=99), r"cannot be read: `format` must be 1, got 99; the"),
        (lambda c: c.pop("format"), r"cannot be read: `format` must be 1, got None; the"),
        (lambda c: c.pop("dynamics"), r"missing required field `dynamics`"),
        (lambda c: c["action_spec"].pop("scale"), r"missing required field `scale`"),
        (lambda c: c["dynamics"].update(depth=4), r"cannot be read: .*'depth'\.$"),
        (lambda c: c.update(dynamics=None), r"cannot be read: .*`dynamics`: expected `object`"),
        (
            lambda c: c["provenance"].update(split={"dynamics": "all"}),
            r"`split\.dynamics`: expected",
        ),
        (
            lambda c: c["provenance"].update(starts_from={"data": 1}),
            r"`starts_from\.data`: expected",
        ),
        (lambda c: c["dynamics"].update(heads=3), r"`dim` must be an even multiple of `heads`"),
    ],
)
def test_an_invalid_config_is_refused_in_one_line(
    saved: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit_config(saved, change)
    with pytest.raises(ValueError, match=rf"^The config\.json in '.*model' .*{reason}") as caught:
        WorldModel.load(saved)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not str(caught.value).endswith("..")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected `object`, got `array`"),
        ("", "is not valid JSON"),
    ],
)
def test_a_config_that_is_no_config_is_refused(saved: Path, text: str, reason: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"^The config\.json in '.*model' cannot be read: .*{reason}"
    ):
        WorldModel.load(saved)


@pytest.mark.parametrize("content", [b"", b"garbage" * 10, None])
def test_corrupt_weights_are_refused(saved: Path, content: bytes | None) -> None:
    """Empty, not safetensors at all, and cut off in the middle."""
    file = saved / "weights.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"^The weights in '.*model' cannot be read: .*\.$"):
        WorldModel.load(saved)


def test_missing_weights_and_a_missing_tokenizer_are_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "weights.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"^The weights in '.*model' cannot be read: No such file"):
        WorldModel.load(saved)
    (saved / "tokenizer").rename(tmp_path / "tokenizer")
    with pytest.raises(
        ValueError, match=r"^No tokenizer in '.*tokenizer': there is no such folder"
    ):
        WorldModel.load(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop("dynamics.final.bias"), r"dynamics\.final\.bias is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), r"extra is unexpected"),
        (
            lambda w: w.update({"dynamics.final.bias": torch.zeros(3)}),
            r"dynamics\.final\.bias has shape \(3,\) instead of \(2,\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused_in_one_line(
    saved: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    weights = load_file(saved / "weights.safetensors")
    change(weights)
    save_file(weights, saved / "weights.safetensors")
    message = rf"^The weights in '.*model' do not fit its config\.json: {reason}\.$"
    with pytest.raises(ValueError, match=message):
        WorldModel.load(saved)


def test_a_tokenizer_of_another_model_is_refused(saved: Path) -> None:
    other = TokenizerConfig(channels=4, widths=(4, 8, 8), layers=(0, 1, 1))
    Tokenizer.from_config(other).save(saved / "tokenizer")
    message = (
        "`tokenizer` makes latents of (4, 4, 4) (channels, height, width) from frames of (16, 16) "
        "pixels; the dynamics network expects (2, 4, 4)."
    )
    with pytest.raises(ValueError, match=f"do not fit its config.json: {re.escape(message)}$"):
        WorldModel.load(saved)


def test_config_survives_json(make_model: Build) -> None:
    config = make_model().config
    assert ModelConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert config.rate_hz == 5.0


def test_imagining_with_actions_of_another_width_is_refused(make_model: Build) -> None:
    with pytest.raises(ValueError, match=r"^`actions` must be rows of 7 numbers, got rows of 8\.$"):
        make_model().imagine(torch.zeros(1, 1, 1, 2, 4, 4), torch.zeros(1, 3, 8))


@pytest.mark.parametrize(
    ("context", "actions", "text"),
    [
        ((1, 2, 1, 2, 8, 8), (1, 3, 7), r"`context` must have shape .*got \(1, 2, 1, 2, 8, 8\)"),
        ((1, 2, 2, 4, 4), (1, 3, 7), r"`context` must have shape .*got \(1, 2, 2, 4, 4\)"),
        ((1, 2, 1, 2, 4, 5), (1, 3, 7), r"`context` must have shape .*got \(1, 2, 1, 2, 4, 5\)"),
        (None, (2, 3, 7), r"`actions` must have shape \(1, rows, 7\) .*got \(2, 3, 7\)"),
        (None, (3, 7), r"`actions` must have shape \(1, rows, 7\) .*got \(3, 7\)"),
    ],
)
def test_wrong_shapes_are_found_before_anything_is_imagined(
    make_model: Build,
    context: tuple[int, ...] | None,
    actions: tuple[int, ...],
    text: str,
) -> None:
    """Both shapes are printed; without the test's type checks, as users call it."""
    model = make_model()
    dynamics = model.config.dynamics
    latent = dynamics.views, dynamics.channels, dynamics.height, dynamics.width
    with pytest.raises(ValueError, match=text):
        model._check_shapes(torch.zeros(context or (1, 2, *latent)), torch.zeros(actions))


@torch.no_grad()
def test_encoding_is_resizing_then_the_tokenizer_whatever_the_chunk(make_model: Build) -> None:
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (5, 1, 24, 40, 3), dtype=torch.uint8, generator=generator)
    latents = model.encode(frames)
    expected = model.tokenizer.encode(resize(to_model(frames[:, 0]), (16, 16)))
    torch.testing.assert_close(latents[:, 0], expected)
    torch.testing.assert_close(model.encode(frames, chunk=2), latents)
    pixels = model.decode(latents)
    assert pixels.shape == (5, 1, 16, 16, 3)
    assert (model.decode(latents, chunk=3).int() - pixels.int()).abs().max() <= 1
    assert torch.equal(model.decode(latents[0]), pixels[0])


def test_encoding_another_number_of_views_is_refused(make_model: Build) -> None:
    frames = torch.zeros((2, 3, 16, 16, 3), dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"^`frames` has 3 views; the model was trained on \('front',\)\.$"
    ):
        make_model().encode(frames)


def test_resizing_averages_and_leaves_the_right_size_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand((2, 3, 3, 8, 8), generator=generator)
    assert resize(frames, (8, 8)) is frames
    flat = torch.full((1, 3, 12, 20), 0.3)
    torch.testing.assert_close(resize(flat, (6, 10)), torch.full((1, 3, 6, 10), 0.3))
    means = (resize(frames, (4, 4)).mean((-2, -1)), frames.mean((-2, -1)))
    torch.testing.assert_close(*means, atol=0.05, rtol=0)
