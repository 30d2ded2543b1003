import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from worldmodel.training.config import LoopConfig
from worldmodel.training.loop import NonFiniteLossError, StepSampler, fit
from worldmodel.training.optimizers import average_decay, optimizers
from worldmodel.training.randomness import StepRandomness
from worldmodel.training.state import latest_checkpoint
from worldmodel.training.stopping import Stop, TrainingStopped

CONFIG = LoopConfig(
    steps=7, batch_size=4, warmup=2, checkpoint_every=2, muon_learning_rate=0.02, average_decay=0.6
)


class Rows(Dataset[Tensor]):
    """Twenty fixed rows of four numbers."""

    def __init__(self) -> None:
        self.rows = torch.randn((20, 4), generator=Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]

    collate = staticmethod(torch.stack)


class Record(list[Any]):
    """What an objective saw; copies of the objective go on writing into it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Record":
        return self


class Toy(nn.Module):
    """A network with everything that carries state: Muon's matrices, a running mean, dropout."""

    def __init__(self, at: int = -1, event: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))})
        self.norm = nn.BatchNorm1d(4)
        self.final = nn.Linear(4, 1)
        self.at, self.event = at, event
        self.losses = Record()
        self.weights = Record()

    def forward(self, batch: Tensor, draws: StepRandomness) -> tuple[Tensor, dict[str, Tensor]]:
        noise = 0.1 * draws.normal_like(batch)
        out = self.final(self.norm(self.net["mlp"](batch + noise)))
        loss = (out - batch.sum(1, keepdim=True)).square().mean()
        if self.event is not None and len(self.losses) == self.at:
            loss = self.event(loss)
        if self.training:
            self.losses.append(loss.item())
            self.weights.append(self.final.weight.detach().clone())
        return loss, {"half": loss.detach() / 2}


def run(objective: Toy, folder: Path, config: LoopConfig = CONFIG) -> Toy:
    trained = fit(objective, Rows(), config, folder)
    assert isinstance(trained, Toy)
    return trained


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    expected = other.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in one.state_dict().items())


def interrupt(loss: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return run(Toy(), tmp_path_factory.mktemp("whole"))


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    uninterrupted: Toy, tmp_path: Path
) -> None:
    """Stopped in its sixth step, after checkpoints at 2 and 4."""
    stopped = Toy(at=5, event=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-4"
    resumed = run(Toy(), tmp_path)
    assert stopped.losses == uninterrupted.losses[:5]
    assert resumed.losses == uninterrupted.losses[4:]
    assert_same_weights(resumed, uninterrupted)
    assert not resumed.training


def die(loss: Tensor) -> Tensor:
    signal.raise_signal(signal.SIGKILL)
    return loss


def test_a_run_after_kill_9_is_the_uninterrupted_run(uninterrupted: Toy, tmp_path: Path) -> None:
    code = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('tests', sys.argv[1])\n"
        "tests = importlib.util.module_from_spec(spec)\n"
        "sys.modules['tests'] = tests\n"
        "spec.loader.exec_module(tests)\n"
        "tests.run(tests.Toy(at=3, event=tests.die), pathlib.Path(sys.argv[2]))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path)], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-2"
    resumed = run(Toy(), tmp_path)
    assert resumed.losses == uninterrupted.losses[2:]
    assert_same_weights(resumed, uninterrupted)


def terminate(loss: Tensor) -> Tensor:
    signal.raise_signal(signal.SIGTERM)
    return loss


def test_sigterm_stops_after_the_step_with_a_checkpoint(uninterrupted: Toy, tmp_path: Path) -> None:
    """Between checkpoints: the signal comes in the fourth step."""
    message = (
        rf"^Stopped at SIGTERM, after step 4 of 7 of stage '{tmp_path.name}'; run the same "
        r"command to resume\.$"
    )
    with Stop() as stop, pytest.raises(TrainingStopped, match=message):
        fit(Toy(at=3, event=terminate), Rows(), CONFIG, tmp_path, stop=stop)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-4"
    resumed = run(Toy(), tmp_path)
    assert resumed.losses == uninterrupted.losses[4:]
    assert_same_weights(resumed, uninterrupted)


def test_a_run_whose_time_is_up_takes_no_step(tmp_path: Path) -> None:
    objective = Toy()
    with pytest.raises(TrainingStopped, match=r"^Stopped after `--max-hours 0`, after step 0 of "):
        fit(objective, Rows(), CONFIG, tmp_path, stop=Stop(max_hours=0.0))
    assert objective.losses == []


def test_a_finished_run_is_not_trained_again(uninterrupted: Toy, tmp_path: Path) -> None:
    run(Toy(), tmp_path)
    again = run(Toy(), tmp_path)
    assert again.losses == []
    assert_same_weights(again, uninterrupted)


def test_a_checkpoint_killed_half_way_is_ignored_and_cleaned(
    uninterrupted: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint writes one broken file and fails; a kill would leave the same."""
    save = torch.save

    def fail_later(values: Any, path: Path) -> None:
        save(values, path)
        if (tmp_path / "step-2").exists():
            path.write_bytes(b"half")
            raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail_later)
        with pytest.raises(OSError, match="No space left on device"):
            run(Toy(), tmp_path)
    assert not (tmp_path / "partial").exists()
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "leftover").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-2"
    resumed = run(Toy(), tmp_path)
    assert_same_weights(resumed, uninterrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "step-7"]
    assert not (tmp_path / "step-7" / "leftover").exists()


def not_a_number(loss: Tensor) -> Tensor:
    return loss * torch.nan


def steep(loss: Tensor) -> Tensor:
    """Finite itself, but its gradient is not: the slope of √ at 0."""
    return (0 * loss).sqrt()


@pytest.mark.parametrize(
    ("event", "what"), [(not_a_number, "loss"), (steep, "gradient norm")], ids=["loss", "gradient"]
)
def test_training_stops_at_numbers_that_are_none(
    event: Callable[[Tensor], Tensor], what: str, tmp_path: Path
) -> None:
    message = (
        rf"^The {what} of stage '{tmp_path.name}' became nan at step 3; the last checkpoint is "
        r"kept\. Check the data with `worldmodel data validate`, or lower the learning rate\.$"
    )
    objective = Toy(at=3, event=event)
    with pytest.raises(NonFiniteLossError, match=message):
        run(objective, tmp_path)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-2"
    assert all(value.isfinite().all() for value in objective.state_dict().values())


def test_the_weights_returned_are_the_average_over_steps(tmp_path: Path) -> None:
    """By hand: a₁ = w₁, aₙ₊₁ = d aₙ + (1 - d) wₙ₊₁ with d = min(0.6, (1 + n) / (10 + n))."""
    objective = run(Toy(), tmp_path)
    stored = torch.load(tmp_path / "step-7" / "state.pt", weights_only=True)
    last = stored["model"]["final.weight"]
    after_step = [*objective.weights[1:], last]  # forward sees what the step before left
    average = after_step[0]
    for n, weight in enumerate(after_step[1:], 1):
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(objective.final.weight.detach(), average)
    assert not torch.allclose(average, last, atol=1e-5)


def test_average_decay_rises_to_its_limit() -> None:
    assert [average_decay(n, 0.9) for n in (0, 10, 1000)] == [0.1, 0.55, 0.9]


def test_learning_rate_warms_up_then_falls_to_a_twentieth() -> None:
    config = LoopConfig(steps=100, batch_size=1, warmup=10)
    rates = [config.learning_rate_factor(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert rates[50] == pytest.approx(0.05 + 0.95 / 2)
    assert rates[100] == pytest.approx(0.05)
    assert max(rates) == rates[9]
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_muon_trains_hidden_matrices_and_adamw_the_rest() -> None:
    toy = Toy()
    toy.norm.weight.requires_grad_(False)
    muon, adam = optimizers(toy, CONFIG)
    matrix = toy.net["mlp"][0].weight
    assert [id(p) for p in muon.param_groups[0]["params"]] == [id(matrix)]
    rest = {id(p) for p in adam.param_groups[0]["params"]}
    assert rest == {id(p) for p in toy.parameters()} - {id(matrix), id(toy.norm.weight)}
    (alone,) = optimizers(toy, replace(CONFIG, muon_learning_rate=None))
    assert isinstance(alone, torch.optim.AdamW)
    assert len(alone.param_groups[0]["params"]) == len(rest) + 1


@dataclass(frozen=True)
class Share:
    start: int = 0
    process: int = 0
    processes: int = 1

    def batches(self, config: LoopConfig = CONFIG) -> list[list[int]]:
        sampler = StepSampler(20, config, **vars(self))
        assert len(sampler) == config.steps - self.start
        return list(sampler)


def test_batches_depend_on_seed_and_step_alone() -> None:
    whole = Share().batches()
    assert Share(start=3).batches() == whole[3:]
    assert Share().batches(replace(CONFIG, seed=1)) != whole
    assert len({tuple(batch) for batch in whole}) == len(whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_batch_without_overlap(processes: int) -> None:
    whole = Share().batches()
    parts = [Share(process=i, processes=processes).batches() for i in range(processes)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert sum(map(len, shares)) == len(batch)
        assert sorted(i for share in shares for i in share) == sorted(batch)


def test_events_of_a_killed_run_do_not_appear_twice(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=35, checkpoint_every=15)
    with pytest.raises(KeyboardInterrupt):
        run(Toy(at=33, event=interrupt), tmp_path, config)
    losses = run(Toy(), tmp_path, config).losses
    events = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("loss")
    assert [event.step for event in events] == [0, 10, 20, 30]
    assert events[-1].value == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LoopConfig(steps=0, batch_size=4),
            r"^`steps` and `batch_size` must be positive, got 0 and 4\.$",
        ),
        (
            lambda: StepSampler(0, CONFIG, start=0, process=0, processes=1),
            r"^`num_items` must be positive, got 0: the dataset is empty\.$",
        ),
        (
            lambda: StepSampler(9, CONFIG, start=0, process=0, processes=5),
            r"^`batch_size` must be at least the number of processes, 5, got 4\.$",
        ),
    ],
)
def test_impossible_loops_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_events_tell_loss_norm_rates_and_speed(tmp_path: Path) -> None:
    """Every tenth step; the first has no speed, since it pays for setting up."""
    config = replace(CONFIG, steps=25, checkpoint_every=25)
    losses = run(Toy(), tmp_path, config).losses
    found = EventAccumulator(str(tmp_path / "events")).Reload()
    assert set(found.Tags()["scalars"]) == {
        "loss", "gradient_norm", "half", "learning_rate/adamw", "learning_rate/muon",
        "frames_per_second", "mfu",
    }  # fmt: skip
    values = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}
    assert [event.step for event in values["loss"]] == [0, 10, 20]
    assert [event.step for event in values["mfu"]] == [10, 20]
    for event, half in zip(values["loss"], values["half"], strict=True):
        assert event.value == pytest.approx(losses[event.step], rel=1e-5)
        assert half.value == pytest.approx(losses[event.step] / 2, rel=1e-5)
    for event in values["learning_rate/muon"]:
        assert event.value == pytest.approx(0.02 * config.learning_rate_factor(event.step))
    assert all(0 < event.value < 1 for event in values["mfu"])
    assert all(event.value > 0 for event in values["frames_per_second"])


@pytest.mark.parametrize("stopped_after", [None, 5])
def test_a_stage_can_end_with_its_best_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stopped_after: int | None
) -> None:
    """Validated at steps 0, 2, 4, 6, 7; the third is best, also if the run is stopped after it."""
    config = replace(CONFIG, validate_every=2, keep_best=True)
    scores = {0: 1.0, 2: 0.8, 4: 0.5, 6: 0.5, 7: 0.9}
    seen: dict[int, Tensor] = {}

    def fit_once(toy: Toy, stop: Stop | None = None) -> None:
        def validate(writer: Any, step: int) -> float:
            seen[step] = toy.final.weight.clone()
            return scores[step]

        fit(toy, Rows(), config, tmp_path / "stage", validate=validate, stop=stop)

    if stopped_after is not None:
        stop = Stop()
        asked = iter([False] * (stopped_after - 1) + [True])
        stop.agreed = lambda: "Stopped" if next(asked) else None  # type: ignore[method-assign]
        with pytest.raises(TrainingStopped):
            fit_once(Toy(), stop)
    toy = Toy()
    fit_once(toy)
    assert list(seen) == [0, 2, 4, 6, 7]
    assert torch.equal(toy.final.weight, seen[4])
    assert not torch.equal(seen[4], seen[7])
    again = Toy()
    fit(again, Rows(), config, tmp_path / "stage")
    assert torch.equal(again.final.weight, seen[4])
    said = (
        "Stage 'stage' ends with its weights of step 4 of 7: on held-out clips, its error is 0.50"
    )
    assert said in capsys.readouterr().err


def test_looking_at_held_out_data_leaves_the_run_as_it_was(
    uninterrupted: Toy, tmp_path: Path
) -> None:
    """Validation sees averaged weights in evaluation mode, twice, and draws random numbers."""
    config = replace(CONFIG, validate_every=3)
    toy, seen = Toy(), []

    def run_validation(writer: Any, step: int) -> None:
        torch.randn(5)
        assert not toy.training
        seen.append((step, toy.final.weight.clone()))

    fit(toy, Rows(), config, tmp_path, validate=run_validation)
    assert toy.losses == uninterrupted.losses
    assert_same_weights(toy, uninterrupted)
    assert [step for step, _ in seen] == [3, 6, 7]
    assert torch.equal(seen[-1][1], uninterrupted.final.weight)
    assert not torch.equal(seen[0][1], seen[1][1])
