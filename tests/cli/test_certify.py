"""`worldmodel certify`: what is left out, what is printed, and what other commands say after it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from worldmodel.certificate import FILE, USES
from worldmodel.cli import main
from worldmodel.datasets.clip_store import ClipStore
from worldmodel.datasets.trajectory import Trajectory
from worldmodel.model import WorldModel


@pytest.fixture
def store(make_store: Callable[..., Path], make_trajectory: Callable[..., Trajectory]) -> ClipStore:
    episodes = [make_trajectory(f"episode-{i}", 24 + i % 2, i) for i in range(3)]
    return ClipStore.open(make_store("held-out.zarr", *episodes))


@pytest.fixture
def folder(make_model: Callable[..., WorldModel], tmp_path: Path) -> Path:
    model = make_model()
    model.config.provenance["stages"] = ["tokenizer", "dynamics", "confidence"]
    model.save(tmp_path / "model")
    return tmp_path / "model"


def certify(*arguments: object) -> int:
    return main(["certify", *map(str, arguments)])


def test_a_certificate_is_written_and_quoted_by_other_commands(
    folder: Path, store: ClipStore, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A random model fails; `imagine` then says so before anything else."""
    assert certify(folder, "--data", store.path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["episodes"] == 3
    assert list(found["uses"]) == list(USES)
    assert json.loads((folder / FILE).read_text()) == found
    out = tmp_path / "log.zarr"
    assert main(["imagine", "--model", str(folder), "--data", str(store.path), "--out", str(out)]) == 0  # noqa: E501  # fmt: skip
    first = caplog.messages[0]
    assert first.startswith(
        "note: The model is worse than repeating the last frame up to 16 frames"
    )


def test_tables_are_printed(
    folder: Path, store: ClipStore, capsys: pytest.CaptureFixture[str]
) -> None:
    page = folder.parent / "page.html"
    certify(folder, "--data", store.path, "--shifted", store.path, "--report", page)
    text = capsys.readouterr().out
    for part in ("What the model may be used for", "frames ahead", "offset (frames)", "shuffled"):
        assert part in text
        assert part in page.read_text()


def test_without_a_certificate_commands_say_so(
    folder: Path, store: ClipStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "log.zarr"
    main(["imagine", "--model", str(folder), "--data", str(store.path), "--out", str(out)])
    assert caplog.messages[0].startswith("note: The model has no certificate")


def test_training_episodes_are_left_out(
    folder: Path, store: ClipStore, capsys: pytest.CaptureFixture[str]
) -> None:
    model = WorldModel.load(folder)
    names = store.episode_ids
    model.config.provenance.update(
        {
            "data": store.path.name,
            "split": {"dynamics": [names[0]], "confidence": [], "untouched": []},
        }
    )
    model.save(folder)
    certify(folder, "--data", store.path, "--json")
    result = capsys.readouterr()
    assert "1 of 3 episodes" in result.err
    assert json.loads(result.out)["episodes"] == 2


def test_one_episode_is_too_few(
    folder: Path, store: ClipStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify(folder, "--data", store.path, "--episodes", 1) == 2
    assert "needs at least 2 episodes, got 1" in capsys.readouterr().err
    assert not (folder / FILE).exists()
