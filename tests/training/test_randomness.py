import pytest
import torch

from worldmodel.training.randomness import StepRandomness, step_randomness


def share(process: int, processes: int) -> StepRandomness:
    return step_randomness(3, 7, batch_size=5, process=process, processes=processes)


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_draw_what_one_process_would(processes: int) -> None:
    """Noise, uniform numbers and seeds of five items, whoever holds which of them."""

    def drawn(draws: StepRandomness) -> tuple[torch.Tensor, torch.Tensor, list[int], float]:
        count = len(range(5)[draws.process :: draws.processes])
        noise = draws.normal_like(torch.zeros(2 * count, 3), num_items=count)
        numbers = draws.uniform(count), draws.seeds(count), draws.random.random()
        return noise.reshape(count, 2, 3), *numbers

    whole = drawn(share(0, 1))
    for process in range(processes):
        own = drawn(share(process, processes))
        mine = slice(process, None, processes)
        assert torch.equal(own[0], whole[0][mine])
        assert torch.equal(own[1], whole[1][mine])
        assert own[2] == whole[2][mine]
        assert own[3] == whole[3]


def test_draws_differ_between_steps_and_seeds() -> None:
    draws = [step_randomness(seed, step) for seed in (0, 1) for step in (0, 1, 2)]
    assert len({draw.random.random() for draw in draws}) == len(draws)
    assert len({draw.uniform(1).item() for draw in draws}) == len(draws)


def test_noise_is_standard_normal_in_the_dtype_asked_for() -> None:
    """n = 40,000: the bounds are over 6 standard errors."""
    noise = step_randomness(0).normal_like(torch.empty(400, 100, dtype=torch.bfloat16))
    assert noise.dtype == torch.bfloat16
    assert abs(noise.float().mean().item()) < 0.03
    assert noise.float().std().item() == pytest.approx(1.0, abs=0.03)
