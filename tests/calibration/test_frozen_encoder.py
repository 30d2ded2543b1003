"""Features of frozen encoders against the encoders' own calls."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from worldmodel.calibration.frozen_encoder import FrozenEncoder
from worldmodel.monitors.channels.ood_detectors import PositionGaussian
from worldmodel.monitors.metrics.detection import auroc

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Frames of noise."""
    return np.random.default_rng(seed).integers(256, size=(*shape, 3), dtype=np.uint8)


def normalised(
    frames: np.ndarray, *, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
) -> Tensor:
    """Frames as an encoder takes them, channels first."""
    pixels = (frames / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(np.moveaxis(pixels, -1, -3)).float()


def expect(encoder: FrozenEncoder, frame: np.ndarray, expected: Tensor) -> None:
    """The features of one frame are this map [c, h, w], and its mean and deviation."""
    pooled, positions = encoder(frame)
    assert pooled.dtype == positions.dtype == np.float32
    expected = rearrange(expected, "c h w -> h w c").double().numpy()
    assert expected.std() > 0
    np.testing.assert_allclose(positions, expected, rtol=1e-4, atol=1e-5)
    whole = np.concatenate([expected.mean((0, 1)), expected.std((0, 1))])
    np.testing.assert_allclose(pooled, whole, rtol=1e-4, atol=1e-5)


class Patches(nn.Module):
    """Means of 4 x 4 patches: every position depends on its own patch alone."""

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pixels, 4)


class Tokens(nn.Module):
    """Patches as tokens, `extra` constant ones before them; what a vision transformer gives."""

    def __init__(self, extra: int = 0, **attributes: object) -> None:
        super().__init__()
        self.extra = extra
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = rearrange(nn.functional.avg_pool2d(pixels, 4), "b c h w -> b (h w) c")
        return torch.cat((torch.full((len(pixels), self.extra, 3), 9.0), tokens), dim=1)


@dataclass
class ModelOutput:
    """Of transformers, in small."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None


class Returns(nn.Module):
    """A module whose features come in another form."""

    def __init__(self, wrap: Callable[[Tensor], object], inner: nn.Module) -> None:
        super().__init__()
        self.wrap, self.inner = wrap, inner

    def forward(self, pixels: Tensor) -> object:
        return self.wrap(self.inner(pixels))


class ForwardFeatures(Tokens):
    """timm's way: `forward` classifies, `forward_features` does not."""

    def forward(self, pixels: Tensor) -> Tensor:
        raise AssertionError

    def forward_features(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)


FORMS: dict[str, Callable[[], FrozenEncoder]] = {
    "map": lambda: FrozenEncoder(Patches(), **HALF),
    "map, channels last": lambda: FrozenEncoder(
        channels_last(Returns(lambda m: m.movedim(1, -1), Patches())), **HALF
    ),
    "tokens": lambda: FrozenEncoder(Tokens(), patch_size=4, **HALF),
    "class and register tokens": lambda: FrozenEncoder(Tokens(extra=5), patch_size=4, **HALF),
    "last_hidden_state": lambda: FrozenEncoder(
        Returns(ModelOutput, Tokens(extra=1)), patch_size=4, **HALF
    ),
    "feature_maps": lambda: FrozenEncoder(
        Returns(lambda m: SimpleNamespace(feature_maps=(m * 0, m)), Patches()), **HALF
    ),
    "dict of DINOv2": lambda: FrozenEncoder(
        Returns(lambda m: {"x_norm_clstoken": m[:, 0], "x_norm_patchtokens": m[:, 1:]}, Tokens(1)),
        patch_size=4,
        **HALF,
    ),
    "two towers": lambda: FrozenEncoder(two_towers(), **HALF),
    "forward_features": lambda: FrozenEncoder(
        ForwardFeatures(
            1,
            patch_embed=SimpleNamespace(patch_size=(4, 4), img_size=None),
            pretrained_cfg={"input_size": (3, 8, 12), **HALF},
        )
    ),
}


def channels_last(module: nn.Module) -> nn.Module:
    """As timm marks a module that gives [b, h, w, c]."""
    module.output_fmt = "NHWC"
    return module


def two_towers() -> nn.Module:
    """As CLIP: of no use without text, but for its vision tower."""
    towers = ForwardFeatures()
    towers.vision_model = Returns(ModelOutput, Tokens(extra=1))
    towers.vision_model.config = SimpleNamespace(patch_size=4, image_size=[8, 12])
    return towers


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_every_form_of_output_is_the_same_map(make: Callable[[], FrozenEncoder]) -> None:
    frame = noise(8, 12)
    expect(make(), frame, Patches()(normalised(frame)[None])[0])


def test_a_vector_is_a_map_of_one_position() -> None:
    frame = noise(8, 12)
    encoder = FrozenEncoder(Returns(lambda m: m.mean((2, 3)), Patches()), **HALF)
    expect(encoder, frame, normalised(frame).mean((1, 2), keepdim=True))


def autoencoder(name: str) -> Any:
    """A small one of diffusers, random weights."""
    import diffusers

    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    blocks: dict[str, dict[str, Any]] = {
        "AutoencoderKL": {
            "down_block_types": down,
            "up_block_types": up,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "sample_size": 512,
        },
        "AutoencoderTiny": {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        "AutoencoderDC": {
            "latent_channels": 4,
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "decoder_norm_types": "rms_norm",
        },
        "VQModel": {
            "down_block_types": down,
            "up_block_types": up,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
        },
    }
    return getattr(diffusers, name)(**blocks[name])


LATENTS: dict[str, Callable[[Any], Tensor]] = {
    "AutoencoderKL": lambda output: output.latent_dist.mode(),
    "AutoencoderTiny": lambda output: output.latents,
    "AutoencoderDC": lambda output: output.latent,
    "VQModel": lambda output: output.latents,
}


@pytest.mark.parametrize("name", LATENTS)
def test_an_autoencoder_gives_its_latents(name: str) -> None:
    """Frames in [-1, 1], at their own size: `sample_size` is what a pipeline draws, no demand."""
    model, frame = autoencoder(name), noise(16, 24)
    with torch.no_grad():
        latents = LATENTS[name](model.eval().encode(normalised(frame)[None]))[0]
    expect(FrozenEncoder(model), frame, latents)


def test_the_encoder_half_alone_will_do() -> None:
    model, frame = autoencoder("AutoencoderKL").encoder, noise(16, 16)
    with torch.no_grad():
        moments = model.eval()(normalised(frame)[None])[0]
    expect(FrozenEncoder(model), frame, moments)


def small_unet(in_channels: int = 3) -> Any:
    """Of diffusers, random weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        in_channels=in_channels,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=4,
    )


def test_a_unet_gives_its_middle() -> None:
    """Step by step as diffusers' own `forward` goes down."""
    unet, frame = small_unet(), noise(16, 16)
    encoder = FrozenEncoder(unet)
    with torch.no_grad():
        embedding = unet.time_embedding(unet.time_proj(torch.zeros(1)))
        hidden = unet.conv_in(normalised(frame)[None])
        for block in unet.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=embedding)
        middle = unet.mid_block(hidden, embedding)[0]
    expect(encoder, frame, middle)
    assert not unet.mid_block._forward_hooks


TRANSFORMERS = {
    "ViT": {"hidden_act": "gelu"},
    "Dinov2": {"mlp_ratio": 2},
    "Dinov2WithRegisters": {"mlp_ratio": 2, "num_register_tokens": 4},
    "CLIPVision": {},
    "SiglipVision": {},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_vision_models(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        **TRANSFORMERS[name],
    )
    torch.manual_seed(0)
    model, frame = getattr(transformers, f"{name}Model")(config), noise(16, 16)
    with torch.no_grad():
        tokens = model.eval()(normalised(frame, **IMAGENET)[None]).last_hidden_state
    expected = rearrange(tokens[0, -16:], "(h w) c -> c h w", h=4)
    expect(FrozenEncoder(model, **IMAGENET), frame, expected)
    assert FrozenEncoder(model, **IMAGENET)(noise(40, 30))[1].shape == (4, 4, 16)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "reg_tokens": 4}),
        ("resnet18", {}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
    ],
)
def test_timm_models(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    torch.manual_seed(0)
    model, side = timm.create_model(name, **options), options.get("img_size", 224)
    frame = noise(side, side)
    colours = {part: model.pretrained_cfg[part] for part in ("mean", "std")}
    with torch.no_grad():
        features = model.eval().forward_features(normalised(frame, **colours)[None])[0]
    if features.ndim == 2:
        features = rearrange(features[5:], "(h w) c -> c h w", h=2)
    elif name.startswith("swin"):
        features = rearrange(features, "h w c -> c h w")
    expect(FrozenEncoder(model), frame, features)


@pytest.mark.parametrize("views", [(), (1,), (2,)])
def test_a_frame_is_a_row_of_its_episode(views: tuple[int, ...]) -> None:
    frames = noise(5, *views, 16, 24)
    encoder = FrozenEncoder(autoencoder("AutoencoderKL"))
    pooled, positions = encoder.of_episode(torch.from_numpy(frames), chunk=3)
    assert positions.shape == (5, *views, 8, 12, 4)
    assert pooled.shape == (5, 8 * (views or (1,))[0])
    for frame, whole, places in zip(frames, pooled, positions, strict=True):
        one = encoder(frame)
        np.testing.assert_allclose(one[0], whole, atol=1e-5)
        np.testing.assert_allclose(one[1], places, atol=1e-5)
        assert one[1].shape == places.shape


@pytest.mark.parametrize("module", [Patches(), Tokens(extra=1)], ids=["map", "tokens"])
def test_a_changed_patch_changes_its_own_position(module: nn.Module) -> None:
    encoder, frame = FrozenEncoder(module, patch_size=4, **HALF), noise(2, 8, 12)
    changed = frame.copy()
    changed[1, 4:8, 8:12] = 255
    moved = (encoder(changed)[1] != encoder(frame)[1]).any(axis=-1)
    assert moved[1, 1, 2]
    assert moved.sum() == 1


def test_frames_are_scaled_to_what_the_encoder_takes() -> None:
    frame = np.kron(noise(4, 4), np.ones((10, 10, 1), np.uint8))
    encoder = FrozenEncoder(Patches(), image_size=(16, 16), **HALF)
    means = normalised(noise(4, 4)).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(encoder(frame)[1], means, atol=0.35)  # seams are smoothed
    assert np.corrcoef(encoder(frame)[1].ravel(), means.ravel())[0, 1] > 0.99


def test_the_encoder_is_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    encoder, frame = FrozenEncoder(model, **HALF), noise(8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    np.testing.assert_array_equal(encoder(frame)[1], encoder(frame)[1])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_half_precision_encoder_gives_float32() -> None:
    model, frame = nn.Conv2d(3, 4, 4, 4), noise(8, 8)
    full = FrozenEncoder(model, **HALF)(frame)[1]
    half = FrozenEncoder(model.bfloat16(), **HALF)(frame)[1]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, full, atol=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FrozenEncoder(Patches()), "`mean` must be given: the config of Patches has no"),
        (lambda: FrozenEncoder(Patches(), mean=(0.5,) * 3), "`std` must be given"),
        (lambda: FrozenEncoder(Patches(), mean=(0.5,), std=(1.0,) * 3), "`mean` must hold 3"),
        (lambda: FrozenEncoder(Patches(), mean=(0.5,) * 3, std=(0.0,) * 3), "`std` must be above"),
        (lambda: FrozenEncoder(small_unet(4)), "must take RGB frames, got one that takes 4"),
        (lambda: FrozenEncoder(Tokens(), **HALF)(noise(8, 8)), "side of a patch in `patch_size`"),
        (
            lambda: FrozenEncoder(Tokens(), patch_size=2, **HALF)(noise(8, 8)),
            r"`patch_size` \(2, 2\) makes 4 x 4 tokens of frames of \(8, 8\) .* returns 4;",
        ),
        (
            lambda: FrozenEncoder(Tokens(), patch_size=8, **HALF)(noise(32, 32)),
            "makes 4 x 4 tokens .* returns 64;",
        ),
        (
            lambda: FrozenEncoder(Tokens(), patch_size=16, **HALF)(noise(8, 8)),
            "makes 0 x 0 tokens",
        ),
        (
            lambda: FrozenEncoder(Returns(lambda m: SimpleNamespace(logits=m), Patches()), **HALF)(
                noise(8, 8)
            ),
            "got SimpleNamespace from Returns; pass the submodule that computes the features",
        ),
        (
            lambda: FrozenEncoder(Returns(lambda m: m[None], Patches()), **HALF)(noise(8, 8)),
            r"a map, tokens or vectors, got shape \(1, 1, 3, 2, 2\)",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_detector_finds_a_strange_patch_where_it_lies() -> None:
    """A dim noise scene, and the same with a bright patch; 60 frames to fit, 20 and 20 to score."""
    encoder = FrozenEncoder(autoencoder("AutoencoderKL"))
    fit, fresh, strange = (noise(n, 16, 16, seed=seed) // 4 for seed, n in enumerate((60, 20, 20)))
    strange[:, 8:12, 0:4] += 150
    maps = [encoder.of_episode(torch.from_numpy(frames))[1] for frames in (fit, fresh, strange)]
    detector = PositionGaussian().fit(maps[0])
    normal, found = detector.score(maps[1]), detector.score(maps[2])
    assert auroc(normal.max((1, 2)), found.max((1, 2))) > 0.95
    place = np.unravel_index(found.mean(0).argmax(), found.shape[1:])
    assert 3 <= place[0] <= 6  # the patch covers 4 and 5, and convolutions see one further
    assert place[1] <= 2
