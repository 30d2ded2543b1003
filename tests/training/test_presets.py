from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from worldmodel.datasets.clip_store import ClipStore
from worldmodel.networks.dynamics import Dynamics
from worldmodel.training.new_model import new_model
from worldmodel.training.presets import Preset, get_preset

Store = Callable[..., ClipStore]


def test_unknown_presets_are_refused_with_the_closest_name() -> None:
    with pytest.raises(
        ValueError,
        match=r"^Unknown preset 'tabeltop'; known: \[.*'smoke', 'tabletop'.*\]\. "
        r"Did you mean 'tabletop'\?$",
    ):
        get_preset("tabeltop")


def test_presets_must_fit_their_tokenizer(make_store: Store, micro: Preset) -> None:
    odd = replace(micro, image_height=18)
    with pytest.raises(
        ValueError,
        match=r"^`image_height` must be a multiple of 4, the tokenizer's stride times the "
        r"dynamics' patch, got 18\.$",
    ):
        new_model(make_store([4, 4]), odd)


def test_the_large_presets_have_600_million_parameters() -> None:
    """Frames of 256x256 pixels, and of 192x320 by three cameras, at a tokenizer's stride of 8."""
    for name, size, tokens in (("bridge-256", (32, 32), 256), ("droid-3view", (24, 40), 720)):
        preset = get_preset(name)
        config = replace(
            preset.dynamics, channels=4, height=size[0], width=size[1], views=preset.cameras
        )
        with torch.device("meta"):
            network = Dynamics(config)
        assert config.tokens == tokens
        assert 550e6 < sum(p.numel() for p in network.parameters()) < 650e6


def test_presets_deal_out_no_more_than_there_is(micro: Preset) -> None:
    message = r"^`shares` must be positive and add up to 1 at most, got \(0\.9, 0\.2\)\.$"
    with pytest.raises(ValueError, match=message):
        replace(micro, shares=(0.9, 0.2))


@pytest.mark.parametrize(("loop", "limit"), [("rollout_loop", 4), ("judge_loop", 0)])
def test_presets_have_clips_for_their_curricula(micro: Preset, loop: str, limit: int) -> None:
    grown = replace(getattr(micro, loop), curriculum=((0.0, 2), (0.5, 5)))
    message = rf"^`curriculum` of `{loop}` may ask for clips of at most {limit} frames, got "
    with pytest.raises(ValueError, match=message):
        replace(micro, **{loop: grown})
