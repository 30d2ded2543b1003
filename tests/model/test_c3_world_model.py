"""Imported C3 networks as world models: latents, rollouts, saving and loading."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.speed.plain_reference import PlainConfig, PlainDiT
from worldmodel import WorldModel
from worldmodel.c3_import import as_world_model, load_c3
from worldmodel.checkpoint import check_trained
from worldmodel.datasets.actions import CANONICAL
from worldmodel.imagination import imagine_published
from worldmodel.networks.c3 import C3Network
from worldmodel.networks.sampler import Sampling
from worldmodel.networks.tokenizer import Tokenizer

Make = Callable[..., WorldModel]
SCALE = 1.5


def small_autoencoder(channels: int = 3) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=SCALE, shift_factor=0.3,
    ).eval()  # fmt: skip


@pytest.fixture
def network(tmp_path: Path) -> Callable[[int], C3Network]:
    """`network(confidence_layers)`: a C3 network with latents of 3 x 4 x 4."""

    def make(confidence_layers: int) -> C3Network:
        config = PlainConfig(
            channels=3, dim=24, layers=2, heads=2, action_dim=7, confidence_layers=confidence_layers
        )
        torch.save(PlainDiT(config).randomize(0).state_dict(), tmp_path / "network.pt")
        return load_c3(
            tmp_path / "network.pt", heads=2, window=3, height=4, width=4,
            spatial_rotary="standard", temporal_rotary="standard", objective="ddpm",
        )  # fmt: skip

    return make


@pytest.fixture
def imported(network: Callable[[int], C3Network]) -> Make:
    """`imported(confidence_layers)`: a world model of that network and a small autoencoder."""

    def make(confidence_layers: int = 1) -> WorldModel:
        autoencoder = small_autoencoder()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in autoencoder.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        tokenizer = Tokenizer(autoencoder, torch.full((3,), 9.0), torch.full((3,), 9.0))
        return as_world_model(
            network(confidence_layers), tokenizer, action_spec=CANONICAL, source="a test"
        )

    return make


def draw_rollout() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 1, 3, 4, 4, generator=g), torch.randn(2, 6, 7, generator=g)


def test_latents_are_those_of_the_publications(imported: Make) -> None:
    """Scaling factor without shift, regardless of the tokenizer's earlier whitening."""
    model = imported()
    pixels = torch.randint(256, (5, 1, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    frames = pixels.to(torch.uint8)
    latents = model.encode(frames)
    autoencoder = model.tokenizer.autoencoder
    with torch.no_grad():
        moments = autoencoder.encode(frames[:, 0].movedim(-1, 1) / 255 * 2 - 1).latent_dist
        decoded = autoencoder.decode(latents[:, 0] / SCALE).sample
    torch.testing.assert_close(latents[:, 0], moments.mode() * SCALE, atol=1e-5, rtol=0)
    pixels = ((decoded + 1) / 2 * 255).clamp(0, 255).movedim(1, -1)
    assert (model.decode(latents)[:, 0].float() - pixels).abs().max() <= 0.51
    assert pixels.std() > 1


def test_a_world_model_imagines_as_its_network_does(imported: Make) -> None:
    """Action rows are shifted by one frame; the unknown action of the first frame is zero."""
    model, levels = imported(2), (0.2, 0.5, 1.0)
    context, actions = draw_rollout()
    network = model.dynamics
    assert isinstance(network, C3Network)
    unknown = torch.cat((torch.zeros(2, 1, 7), actions), dim=1)
    direct = imagine_published(network, context, unknown, epsilon=levels)
    found = model.imagine(context, actions, epsilon=levels)
    assert torch.equal(found.latents, direct.latents)
    assert torch.equal(found.confidence, direct.confidence)
    assert found.confidence.shape == (2, 5, 1, 3, 4, 4, 3)
    with pytest.raises(ValueError, match="heun"):
        model.imagine(context, actions, sampling=Sampling(method="heun"))


@pytest.mark.parametrize("confidence_layers", [0, 1])
def test_a_saved_model_is_the_same_bit_for_bit(
    imported: Make, tmp_path: Path, confidence_layers: int
) -> None:
    model = imported(confidence_layers)
    before = model.imagine(*draw_rollout(), epsilon=(0.3, 0.6))
    model.save(tmp_path / "model")
    loaded = WorldModel.load(tmp_path / "model")
    assert loaded.config == model.config
    assert (loaded.sampling.num_steps, loaded.sampling.method) == (10, "ddim")
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    after = loaded.imagine(*draw_rollout(), epsilon=(0.3, 0.6))
    assert torch.equal(after.latents, before.latents)
    assert torch.equal(after.confidence, before.confidence)


def test_only_a_network_with_a_head_states_confidence(imported: Make) -> None:
    own, none = imported(1), imported(0)
    assert (own.states_confidence, none.states_confidence) == (True, False)
    assert own.confidence is None
    assert (own.has_confidence, none.has_confidence) == (True, False)
    check_trained(own.config.provenance, "own", "confidence")
    with pytest.raises(ValueError, match="imported checkpoint without a confidence head"):
        check_trained(none.config.provenance, "none", "confidence")
    assert none.imagine(*draw_rollout(), epsilon=()).confidence.shape[-1] == 0


def test_configs_say_which_network_they_are_of(imported: Make, tmp_path: Path) -> None:
    model = imported()
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    stored = json.loads(file.read_text())
    assert stored["dynamics"]["network"] == "reference"
    stored["dynamics"]["network"] = "another"
    file.write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match="`network` must be one of own, recurrent, reference, got 'another'"
    ):
        WorldModel.load(tmp_path / "model")
    with pytest.raises(ValueError, match="`method` must be one of"):
        replace(model.config, sampler="none")


def test_a_tokenizer_of_other_channels_is_refused(network: Callable[[int], C3Network]) -> None:
    tokenizer = Tokenizer(small_autoencoder(4), torch.zeros(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"`tokenizer` makes latents of \(4, 4, 4\).*\(3, 4, 4\)"):
        as_world_model(network(0), tokenizer, action_spec=CANONICAL)


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    torch.manual_seed(0)
    said: list[Tensor] = []
    exec("\n".join(blocks), names := {"print": said.append})
    assert [float(difference) < 1e-4 for difference in said] == [True, True]
    assert names["video"].shape == (1, 3, 1, 64, 64, 3)
