"""A reader, channel, policy or preset is complete only when registered and documented.

CONTRIBUTING.md says how to add one; these tests complain about a forgotten step.
"""

import importlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from worldmodel.datasets.open_dataset import FORMS
from worldmodel.envs.policies import POLICIES
from worldmodel.envs.scripted import EXPERTS, make_policy
from worldmodel.envs.simulation import Scene
from worldmodel.monitors.channels.channel_set import CHANNELS, SIGNALS, Channels
from worldmodel.training.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]


def first_columns(page: str) -> str:
    """The first column of every table row of a page in docs/."""
    rows = (ROOT / "docs" / page).read_text().splitlines()
    return "\n".join(row.split("|")[1] for row in rows if row.startswith("| "))


def test_every_reader_is_registered_and_documented() -> None:
    modules = [
        importlib.import_module(f"worldmodel.datasets.readers.{path.stem}")
        for path in sorted((ROOT / "datasets" / "readers").glob("*.py"))
    ]
    readers = {module.FORM for module in modules if hasattr(module, "FORM")}
    assert readers | {"clip-store"} == {form.name for form in FORMS}
    assert len(readers) >= 4
    documented = first_columns("data.md")
    assert [form.name for form in FORMS if f"`{form.name}`" not in documented] == []


def test_every_channel_is_registered_and_documented() -> None:
    """Files of a fitted monitor hold a channel's `arrays`; `Channels` holds the channel."""
    assert [field.name for field in fields(Channels)] == list(CHANNELS)
    for part in CHANNELS:
        classes = [kind for kind in Channels.__annotations__[part].split(" | ") if kind != "None"]
        module = importlib.import_module(f"worldmodel.monitors.channels.{part}")
        channel = getattr(module, classes[0])
        assert all(hasattr(channel, name) for name in ("fit", "score", "arrays", "from_arrays"))
    page = (ROOT / "docs" / "monitor.md").read_text()
    assert [name for name in SIGNALS if f"`{name}`" not in page] == []


@pytest.mark.parametrize("task", EXPERTS)
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_acts_in_every_task(name: str, task: str) -> None:
    assert POLICIES[name].summary
    scene = Scene(
        gripper=np.array([0.24, 0.0, 0.17]), gripper_yaw=0.0, object=np.array([0.3, 0.1, 0.026]),
        object_yaw=0.2, zone=np.array([0.25, -0.1]),
    )  # fmt: skip
    policy = make_policy(POLICIES[name], task, np.random.default_rng(0))
    actions = np.array([policy.act(scene) for _ in range(40)])
    assert actions.shape == (40, 7)
    assert np.isfinite(actions).all()
    assert actions[:, 6].min() >= 0
    assert actions[:, 6].max() <= 1
    assert np.abs(actions[:, :3]).max() < 0.3  # metres in a fifth of a second


def test_every_preset_is_documented() -> None:
    documented = first_columns("training.md")
    assert [name for name in PRESETS if f"`{name}`" not in documented] == []
