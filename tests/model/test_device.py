"""Where a model computes, and in which precision; the networks of all kinds.

Without a GPU, PyTorch's meta device stands in for a second device: its tensors have no values, and
every operation is checked for tensors that were left on the CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.model_fixtures import SMALL_CONFIDENCE, SMALL_TOKENIZER, draw_weights
from worldmodel.calibration.features import FrameFeatures
from worldmodel.datasets.actions import CANONICAL
from worldmodel.imagination import Imagined
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.c3 import C3Config
from worldmodel.networks.compositor import Compositor, CompositorConfig
from worldmodel.networks.dynamics import DynamicsConfig
from worldmodel.networks.recurrent import RecurrentConfig
from worldmodel.networks.rollout import RolloutInputs
from worldmodel.networks.tokenizer import Tokenizer

SHAPE: dict[str, Any] = {"channels": 2, "height": 4, "width": 4, "action_dim": 7}
NETWORKS = {
    "transformer": DynamicsConfig(
        **SHAPE, dim=16, condition_dim=8, layers=1, heads=2, context=3, pose=True
    ),
    "recurrent": RecurrentConfig(**SHAPE, features=8, memory=4, condition=3, layers=2),
    "C3": C3Config(**SHAPE, dim=24, layers=1, heads=2, confidence_layers=1, patch=2, window=3),
}


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> WorldModel:
    config = ModelConfig(
        dynamics=NETWORKS[request.param],
        confidence=SMALL_CONFIDENCE,
        image_size=(16, 16),
        cameras=("front",),
        action_spec=CANONICAL,
        provenance={"stages": []},
    )
    made = WorldModel(config, Tokenizer.from_config(SMALL_TOKENIZER))
    made.set_compositor(Compositor(2, CompositorConfig(latent_width=8, width=8)))
    draw_weights(made)
    return made.eval()


def rollout(model: WorldModel, **options: Any) -> Imagined:
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, 2, 1, 2, 4, 4, generator=generator)
    actions = 0.1 * torch.randn(2, 6, 7, generator=generator)
    states = torch.randn(2, 10, generator=generator)
    return model.imagine(context, actions, epsilon=(0.2, 0.5), first_state=states, **options)


def frames(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 1, 20, 16, 3), generator=generator).byte()


class NothingLeftBehind(TorchDispatchMode):
    """Raises where an operation mixes the meta device with a tensor on the CPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        moves = func._schema.name in ("aten::_to_copy", "aten::copy_")
        if not moves and any(x.is_meta for x in tensors):
            left = [tuple(x.shape) for x in tensors if x.ndim and not x.is_meta]
            assert not left, f"{func} got {left} from the CPU"
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the checks that read values."""
    with monkeypatch.context() as patch:
        patch.setattr(RolloutInputs, "__post_init__", lambda self: None)
        with NothingLeftBehind():
            yield


def test_all_that_a_model_makes_is_on_its_device(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.to("meta")
    mask = torch.ones(2, 2, 1, dtype=torch.bool)
    with on_meta(monkeypatch):
        latents = model.encode(frames(), view_valid=torch.ones(3, 1, dtype=torch.bool))
        found = rollout(model, view_valid=mask, noise=torch.zeros(2, 5, 1, 2, 4, 4))
        drawn = rollout(model)
        shown = model.show(torch.zeros(5, 1, 2, 4, 4), frames(1)[0])
        decoded = model.decode(torch.zeros(5, 1, 2, 4, 4))
        features = FrameFeatures(model)._positions(frames())
    made = (latents, found.latents, found.confidence, drawn.latents, shown, decoded, features)
    assert {value.device.type for value in made} == {"meta"}


def test_the_check_finds_what_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_meta(monkeypatch), pytest.raises(AssertionError, match=r"\(2, 2\).* from the CPU"):
        torch.zeros(2, 2, device="meta") @ torch.ones(2, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_close_and_states_single_precision(
    model: WorldModel, dtype: torch.dtype
) -> None:
    """Relative error of a rollout of 5 frames; a rounding is 0.4% in bfloat16."""
    exact, latents = rollout(model), model.encode(frames())
    decoded = model.decode(latents)
    positions = FrameFeatures(model)._positions(frames())
    model.compute_in(dtype)
    found, coded = rollout(model), model.encode(frames())
    seen = FrameFeatures(model)._positions(frames())
    for value in (found.latents, found.confidence, found.features, coded, seen):
        assert value.dtype == torch.float32
    assert not torch.equal(found.latents, exact.latents)
    for one, other in ((found.latents, exact.latents), (coded, latents), (seen, positions)):
        assert (one - other).norm() < 0.03 * other.norm()
    assert (found.confidence - exact.confidence).abs().max() < 0.05
    gap = (model.decode(latents).float() - decoded.float()).abs()
    assert gap.mean() < 2  # grey levels
    model.compute_in(torch.float32)
    assert torch.equal(rollout(model).latents, exact.latents)


def test_half_precision_leaves_training_alone(model: WorldModel) -> None:
    """Outside a rollout nothing is switched on, and weights stay in single precision."""
    model.compute_in(torch.bfloat16)
    rollout(model)
    assert not torch.is_autocast_enabled("cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_model_is_loaded_where_it_is_asked_for(model: WorldModel, tmp_path: Any) -> None:
    model.save(tmp_path / "model")
    loaded = WorldModel.load(tmp_path / "model", device="cpu", dtype=torch.bfloat16)
    assert loaded.dynamics.compute_dtype == loaded.tokenizer.compute_dtype == torch.bfloat16
    assert not torch.equal(rollout(loaded).latents, rollout(model).latents)


@pytest.mark.gpu
def test_a_gpu_changes_rollouts_only_by_rounding(model: WorldModel) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    exact, latents = rollout(model), model.encode(frames())
    model.to("cuda")
    found, coded = rollout(model), model.encode(frames()).cpu()
    assert torch.allclose(coded, latents, atol=1e-2)
    assert torch.allclose(found.latents.cpu(), exact.latents, atol=1e-2)
    assert torch.allclose(found.confidence.cpu(), exact.confidence, atol=1e-2)
    judged: Callable[..., Tensor] = model.success
    assert judged(exact.latents).device.type == "cpu"
