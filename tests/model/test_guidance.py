"""Classifier-free guidance by the action, and stochastic samplers."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from worldmodel.imagination import DynamicsRollout, context_frames, frames
from worldmodel.networks.dynamics import Dynamics, FrameInputs
from worldmodel.networks.noise_schedule import Flow
from worldmodel.networks.rollout import ImaginedFrame, RolloutInputs, RowNoise
from worldmodel.networks.sampler import Sampling, sample

Build = Callable[..., Dynamics]


def draw_inputs(
    dynamics: Dynamics, *, start: int = 2, rows: int = 6, batch: int = 3
) -> RolloutInputs:
    c = dynamics.config
    generator = Generator().manual_seed(0)
    return RolloutInputs(
        context=torch.randn(
            (batch, start, c.views, c.channels, c.height, c.width), generator=generator
        ),
        actions=torch.randn((batch, rows, c.action_dim), generator=generator),
        action_valid=torch.ones((batch, rows), dtype=torch.bool),
        seeds=[10 + i for i in range(batch)],
    )


def latents(dynamics: Dynamics, inputs: RolloutInputs, **options: object) -> Tensor:
    sampling = Sampling(**options)  # type: ignore[arg-type]
    return torch.stack([f.latent for f in frames(dynamics, inputs, sampling=sampling)], 1)


def counted(dynamics: Dynamics, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the batch size of every later pass through the network."""
    rows: list[int] = []
    hidden = dynamics.hidden

    def count(inputs: FrameInputs, **options: object) -> tuple[Tensor, Tensor]:
        rows.append(len(inputs.noisy))
        return hidden(inputs, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dynamics, "hidden", count)
    return rows


def test_guidance_of_one_is_plain_sampling_without_extra_passes(
    make_dynamics: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics)
    plain = latents(dynamics, inputs, num_steps=2)
    passes = counted(dynamics, monkeypatch)
    assert torch.equal(latents(dynamics, inputs, num_steps=2, guidance=1.0), plain)
    assert passes == [3] + 5 * [3, 3, 3]  # the context, then two steps and the cache pass per frame
    passes.clear()
    latents(dynamics, inputs, num_steps=2, guidance=2.0)
    assert passes == [3] + 5 * [6, 6, 3]


@torch.inference_mode()
def rolled_without_new_actions(dynamics: Dynamics, inputs: RolloutInputs) -> Tensor:
    """Sample each frame without its action, then cache it with its action."""

    class Unguided(DynamicsRollout):
        def next_frame(self, frame: FrameInputs) -> ImaginedFrame:
            unknown = replace(frame, action_valid=torch.zeros_like(frame.action_valid))

            def denoise(noisy: Tensor, level: float) -> Tensor:
                at = replace(unknown, noisy=noisy, level=torch.full_like(frame.level, level))
                return self.dynamics.step(at, self.cache, keep=False).clean

            latent = sample(denoise, frame.noisy, Flow(), self.sampling, self.draw)
            kept = replace(frame, noisy=latent, level=torch.zeros_like(frame.level))
            features = self.dynamics.step(kept, self.cache, keep=True).features
            return ImaginedFrame(latent[:, 0], features[:, 0])

    draw, sampling = RowNoise(inputs.seeds, inputs.context[:, -1:]), Sampling(num_steps=2)
    rollout, previous = Unguided(dynamics, context_frames(dynamics, inputs), sampling, draw), []
    last = inputs.context[:, -1:]
    for t in range(inputs.context.shape[1] - 1, inputs.actions.shape[1]):
        window = slice(t, t + 1)
        level = torch.ones(len(last), 1)
        given = (inputs.actions[:, window], inputs.action_valid[:, window])
        last = rollout.next_frame(FrameInputs(draw(), last, level, *given)).latent[:, None]
        previous.append(last)
    return torch.cat(previous, 1)


def test_guidance_of_zero_ignores_only_the_new_action(make_dynamics: Build) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, rows=9)  # eight frames through a window of three
    guided = latents(dynamics, inputs, num_steps=2, guidance=0.0)
    expected = rolled_without_new_actions(dynamics, inputs)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=0)
    assert (guided - latents(dynamics, inputs, num_steps=2)).abs().max() > 1e-2


def test_one_step_is_linear_in_the_guidance(make_dynamics: Build) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics, rows=2)  # one imagined frame
    unknown, known = (latents(dynamics, inputs, guidance=w) for w in (0.0, 1.0))
    for weight in (0.5, 1.5, 4.0):
        guided = latents(dynamics, inputs, guidance=weight)
        expected = unknown + weight * (known - unknown)
        torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-5)


def test_guidance_without_a_known_action_changes_nothing(make_dynamics: Build) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics)
    inputs = replace(inputs, action_valid=torch.zeros_like(inputs.action_valid))
    plain, guided = (latents(dynamics, inputs, guidance=w) for w in (1.0, 3.0))
    torch.testing.assert_close(guided, plain, atol=1e-5, rtol=0)


@torch.no_grad()
def test_candidates_with_a_shared_cache_are_independent(make_dynamics: Build) -> None:
    """Three candidates for the next frame in one batch equal three single calls."""
    dynamics = make_dynamics()
    context = context_frames(dynamics, draw_inputs(dynamics, start=5))
    cache = dynamics.new_cache()
    dynamics.step(context, cache, keep=True)
    parts = [
        FrameInputs(
            noisy=torch.randn((3, 1, 1, 2, 2, 4), generator=Generator().manual_seed(seed)),
            previous=context.noisy[:, -1:],
            level=torch.full((3, 1), 0.25 * seed),
            actions=torch.full((3, 1, 7), float(seed)),
            action_valid=torch.ones(3, 1, dtype=torch.bool),
        )
        for seed in (1, 2, 3)
    ]
    together = FrameInputs(
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name, value in vars(parts[0]).items()
            if value is not None
        }
    )
    clean = dynamics.step(together, cache, keep=False).clean.chunk(3)
    for candidate, part in zip(clean, parts, strict=True):
        alone = dynamics.step(part, cache, keep=False).clean
        torch.testing.assert_close(candidate, alone, atol=1e-5, rtol=0)
    assert cache.position == 5


@pytest.mark.parametrize("method", ["euler", "ddim"])
def test_stochastic_rollouts_follow_their_own_seeds(make_dynamics: Build, method: str) -> None:
    dynamics = make_dynamics()
    inputs = draw_inputs(dynamics)
    options = {"num_steps": 3, "eta": 0.8, "method": method}
    together = latents(dynamics, inputs, **options)
    assert torch.equal(latents(dynamics, inputs, **options), together)
    for row in range(3):
        alone = replace(
            inputs,
            context=inputs.context[row : row + 1],
            actions=inputs.actions[row : row + 1],
            action_valid=inputs.action_valid[row : row + 1],
            seeds=inputs.seeds[row : row + 1],
        )
        single = latents(dynamics, alone, **options)[0]
        torch.testing.assert_close(single, together[row], atol=1e-5, rtol=0)
    other = latents(dynamics, replace(inputs, seeds=[10, 99, 12]), **options)
    assert torch.equal(other[[0, 2]], together[[0, 2]])
    assert (other[1] - together[1]).abs().max() > 1e-2
    # With the same initial noise, the noise of later steps still depends on the seed.
    noise = torch.randn(together.shape, generator=Generator().manual_seed(3))
    fixed = [replace(inputs, noise=noise, seeds=seeds) for seeds in ([1, 2, 3], [1, 2, 4])]
    first, second = (latents(dynamics, given, **options) for given in fixed)
    assert torch.equal(first[:2], second[:2])
    assert (first[2] - second[2]).abs().max() > 1e-2
    still = [latents(dynamics, given, num_steps=3, method=method) for given in fixed]
    assert torch.equal(*still)
