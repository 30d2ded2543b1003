"""Settings of a run: paths of fields, types, files, shorthands."""

import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from worldmodel.training.presets import PRESETS
from worldmodel.training.settings import LOOPS, Shorthands, flat, resolve, to_toml, toml_value


def test_fields_are_set_by_their_path() -> None:
    found = resolve(
        "smoke",
        assignments=[
            "dynamics.layers=3", "dynamics_loop.learning_rate=2e-4", "computing.precision=bf16",
            "shares=[0.7, 0.2]", "dynamics_loop.muon_learning_rate=none",
            "confidence.familiarity=true",
        ],
    )  # fmt: skip
    preset = found.preset
    assert (preset.dynamics.layers, preset.dynamics.dim) == (3, 64)  # type: ignore[union-attr]
    assert preset.dynamics_loop.learning_rate == 2e-4
    assert preset.computing.precision == "bf16"
    assert preset.shares == (0.7, 0.2)
    assert preset.dynamics_loop.muon_learning_rate is None
    assert preset.confidence.familiarity is True
    assert "dynamics.layers" in found.given
    assert resolve("smoke").preset == PRESETS["smoke"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dynamics.layer=3", r"Unknown field 'layer' of setting 'dynamics.layer'.*'layers'\?"),
        ("dynamic.layers=3", r"Unknown field 'dynamic'.*'dynamics'\?"),
        ("dynamics.layers=many", "Setting `dynamics.layers`"),
        ("dynamics.layers=2.5", "Setting `dynamics.layers`"),
        ("dynamics.layers", "`--set` must be FIELD=VALUE"),
        ("dynamics=3", "`dynamics` is a group; set one of its fields"),
        ("dynamics.views=2", "`dynamics.views` follows from the data"),
        ("clip_frames.x=1", "`clip_frames` in setting 'clip_frames.x' is no group"),
        ("dynamics_loop.steps=0", "Settings of `dynamics_loop`: `steps` and `batch_size` must be"),
        ("shares=[0.9, 0.9]", "`shares` must be positive and add up to 1"),
    ],
)
def test_a_wrong_setting_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve("smoke", assignments=[text])


def test_every_preset_survives_its_own_file(tmp_path: Path) -> None:
    for name in PRESETS:
        file = tmp_path / f"{name}.toml"
        file.write_text(to_toml(resolve(name)))
        assert tomllib.loads(file.read_text())["preset"] == name
        assert resolve(config=file).preset == PRESETS[name]


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "smoke"\nclip_frames = 5\n[dynamics]\nlayers = 3\nheads = 4\n')
    found = resolve(config=file, assignments=["dynamics.layers=1"]).preset
    assert (found.clip_frames, found.dynamics.layers, found.dynamics.heads) == (5, 1, 4)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="`--preset` is 'tabletop', but `preset` in"):
        resolve("tabletop", config=file)


def test_steps_scale_every_loop() -> None:
    before = PRESETS["smoke"]
    after = resolve("smoke", shorthands=Shorthands(steps=30, batch_size=2, height=32)).preset
    assert after.dynamics_loop.steps == 30
    assert after.tokenizer_loop.steps == round(before.tokenizer_loop.steps / 2)
    assert {getattr(after, loop).batch_size for loop in LOOPS} == {2}
    for loop in (getattr(after, name) for name in LOOPS):
        assert loop.warmup <= max(1, loop.steps // 10)
    assert after.image_height == 32


def test_the_shorthands_know_every_loop() -> None:
    preset = PRESETS["smoke"]
    loops = {field.name for field in fields(preset) if field.name.endswith("_loop")}
    assert loops == set(LOOPS)


def test_a_path_for_every_field() -> None:
    """Each can be set to its own value, so no field is out of reach."""
    preset = PRESETS["smoke"]
    for path, value in flat(preset).items():
        assert not is_dataclass(value)
        if path.rpartition(".")[0] == "dynamics" and path.endswith(
            ("channels", "height", "width", "views", "action_dim", "pose")
        ):
            continue
        text = value if isinstance(value, str) else toml_value(value)
        assert resolve("smoke", assignments=[f"{path}={text}"]).preset == preset, path
