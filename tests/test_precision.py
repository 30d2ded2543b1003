"""Names of devices and precisions."""

import pytest
import torch

from worldmodel.precision import choose_device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> object:
    """`machine(cuda=2, mps=False)`: pretend that PyTorch finds these devices."""

    def pretend(*, cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"cuda": 2}, "cuda"),
        ({"cuda": 1, "mps": True}, "cuda"),
    ],
)
def test_auto_takes_a_gpu_if_there_is_one(machine, devices, expected) -> None:  # type: ignore[no-untyped-def]
    machine(**devices)
    assert choose_device("auto") == torch.device(expected)


def test_devices_are_found_by_name(machine) -> None:  # type: ignore[no-untyped-def]
    machine(cuda=2, mps=True)
    names = ("cpu", "cuda", "cuda:1", "mps")
    assert [str(choose_device(name)) for name in names] == list(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", r"^`--device cuda:2` does not exist: PyTorch finds 2, counted from cuda:0; use"),
        ("mps", r"^`--device mps` does not exist: PyTorch finds no Apple GPU; use cpu\.$"),
        ("gpu", r"^`--device` must be auto, cpu, cuda, cuda:N or mps, got 'gpu'\.$"),
        ("cuda:", r"got 'cuda:'\.$"),
        ("cuda:-1", r"got 'cuda:-1'\.$"),
        ("cpu:0", r"got 'cpu:0'\.$"),
        ("", r"got ''\.$"),
    ],
)
def test_devices_that_do_not_exist_are_refused(machine, name, message) -> None:  # type: ignore[no-untyped-def]
    machine(cuda=2)
    with pytest.raises(ValueError, match=message):
        choose_device(name)


def test_no_cuda_device_is_said(machine) -> None:  # type: ignore[no-untyped-def]
    machine()
    with pytest.raises(
        ValueError,
        match=r"^`--device cuda` does not exist: PyTorch finds no CUDA device; use cpu\.$",
    ):
        choose_device("cuda")
