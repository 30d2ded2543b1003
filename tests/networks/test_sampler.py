import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Generator, Tensor

from worldmodel.networks.noise_schedule import Flow, Schedule, SigmoidDiffusion
from worldmodel.networks.sampler import METHODS, Denoise, Sampling, first_order, heun, sample

MEAN, DEVIATION = 1.5, 0.6


def posterior_mean(schedule: Schedule) -> Denoise:
    """E[z | x] for z ~ N(MEAN, DEVIATION²) and x = signal z + sigma n."""

    def denoise(x: Tensor, level: float) -> Tensor:
        signal, sigma = schedule.signal(level), schedule.sigma(level)
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + sigma**2)
        return MEAN + gain * (x - signal * MEAN)

    return denoise


def network(x: Tensor, level: float) -> Tensor:
    """Nonlinear function of both arguments, in place of a network."""
    return torch.tanh(2 * x + level) - 0.3 * x


def transported(noise: Tensor) -> Tensor:
    """Exact flow of noise to data: x_s has mean (1 - s) m and std √((1-s)² d² + s²)."""
    return MEAN + DEVIATION * noise


def draw_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_one_step_is_the_posterior_mean(method: str) -> None:
    drawn = sample(
        posterior_mean(Flow()),
        draw_noise(5),
        Flow(),
        Sampling(method=method),
        lambda: draw_noise(5),
    )
    assert torch.equal(drawn, torch.full((5,), MEAN))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_many_steps_reach_the_exact_flow_at_their_order(method: str, order: int) -> None:
    """Halving the step size divides the error by 2 ** order."""
    noise = torch.linspace(-3, 3, 13, dtype=torch.float64)
    errors = []
    for num_steps in (64, 128, 256):
        sampling = Sampling(method=method, num_steps=num_steps)
        drawn = sample(posterior_mean(Flow()), noise, Flow(), sampling, lambda: noise)
        errors.append((drawn - transported(noise)).abs().max().item())
    assert errors[2] < 0.01
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.08)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.08)


@pytest.mark.parametrize("schedule", [Flow(), SigmoidDiffusion()], ids=["flow", "diffusion"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_have_the_distribution_of_the_data(schedule: Schedule, eta: float) -> None:
    """n = 40000, seed 0: a standard error is 0.003 of the mean, 0.002 of the deviation."""
    generator = Generator().manual_seed(1)
    drawn = first_order(
        posterior_mean(schedule), draw_noise(40_000), schedule, 250, eta,
        lambda: torch.randn(40_000, generator=generator),
    )  # fmt: skip
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert drawn.std().item() == pytest.approx(DEVIATION, abs=0.015)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 16])
def test_euler_equals_diffusers(num_steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=Flow().levels(num_steps)[:-1])
    x = noise = draw_noise(3, 4)
    for sigma, timestep in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        v = (x - network(x, float(sigma))) / sigma
        x = scheduler.step(v, timestep, x).prev_sample
    ours = first_order(network, noise, Flow(), num_steps)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=0)


def test_heun_equals_diffusers() -> None:
    """Diffusers spaces noise levels differently; with 5 steps of 5 they agree."""
    scheduler = FlowMatchHeunDiscreteScheduler(num_train_timesteps=5)
    scheduler.set_timesteps(5)
    levels = Flow().levels(5)
    torch.testing.assert_close(scheduler.sigmas.unique().flip(0), torch.tensor(levels))
    x = noise = draw_noise(3, 4)
    for timestep in scheduler.timesteps:
        sigma = timestep / 5
        v = (x - network(x, float(sigma))) / sigma
        x = scheduler.step(v, timestep, x).prev_sample
    torch.testing.assert_close(heun(network, noise, 5), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_steps", [1, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_equals_diffusers(num_steps: int, eta: float) -> None:
    schedule = SigmoidDiffusion()
    cumulative = schedule.alphas_cumprod
    betas = 1 - cumulative / torch.cat((torch.ones(1), cumulative[:-1]))
    scheduler = DDIMScheduler(
        trained_betas=betas.numpy(), prediction_type="sample", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(num_steps)
    x = noise = draw_noise(3, 4)
    fresh = [draw_noise(3, 4, seed=seed) for seed in range(1, num_steps + 1)]
    for timestep, variance_noise in zip(scheduler.timesteps, fresh, strict=True):
        last = timestep == scheduler.timesteps[-1]
        x = scheduler.step(
            network(x, float(timestep) / 1000), int(timestep), x, eta=eta,
            variance_noise=torch.zeros(3, 4) if last else variance_noise,
        ).prev_sample  # fmt: skip
    rest = iter(fresh)
    ours = first_order(
        lambda x, t: network(x, t / 1000), noise, schedule, num_steps, eta, lambda: next(rest)
    )
    torch.testing.assert_close(ours, x, atol=2e-4, rtol=0)


def test_levels_are_visited_once_each_from_noise_down() -> None:
    seen = []

    def denoise(x: Tensor, level: float) -> Tensor:
        seen.append(level)
        return x

    first_order(denoise, torch.zeros(1), Flow(), 4)
    assert seen == [1.0, 0.75, 0.5, 0.25]
    assert math.isclose(seen[0], 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, r"^`num_steps` must be at least 1, got 0\.$"),
        ({"method": "dpm"}, r"^`method` must be one of .*, got 'dpm'\.$"),
        ({"eta": 1.5}, r"^`eta` must be between 0 and 1, got 1\.5\.$"),
        ({"eta": 0.5, "method": "heun"}, r"^`eta` must be 0 with Heun's method"),
        ({"guidance": -1.0}, r"^`guidance` must be a number of at least 0, got -1\.0\.$"),
        ({"guidance": math.nan}, r"^`guidance` must be a number of at least 0, got nan\.$"),
        ({"window": "half"}, r"^`window` must be \"exact\" or \"stale\", got 'half'\.$"),
    ],
)
def test_invalid_configs_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


def test_heun_on_a_diffusion_is_refused() -> None:
    with pytest.raises(ValueError, match=r'^`method` "heun" needs a flow'):
        sample(network, draw_noise(2), SigmoidDiffusion(), Sampling(method="heun"), lambda: None)  # type: ignore[arg-type, return-value]


def test_every_method_is_known() -> None:
    assert set(METHODS) == {"euler", "heun", "ddim"}
