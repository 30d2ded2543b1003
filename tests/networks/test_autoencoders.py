from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from worldmodel.networks.autoencoders import KINDS, kind_of
from worldmodel.networks.tokenizer import BottleneckInput, Tokenizer


def kl(**changes: object) -> Any:
    """Autoencoder like that of Stable Diffusion 1 and 2."""
    config: dict[str, object] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 4,
    }
    return diffusers.AutoencoderKL(**(config | changes))


def kl_of_16_channels() -> Any:
    """Autoencoder like that of Stable Diffusion 3."""
    bare = {"use_quant_conv": False, "use_post_quant_conv": False}
    return kl(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, **bare)


def temporal_decoder() -> Any:
    """Autoencoder like that of Stable Video Diffusion; group norms need multiples of 32."""
    return diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        latent_channels=4,
    )


def tiny() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=5,
    )


def dc() -> Any:
    """With attention in the deeper block, like the published ones."""
    blocks = ("ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(4, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41407,
    )


def cosmos(patch: int = 2, ratio: int = 4) -> Any:
    return diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(4, 4, 8, 8),
        decode_block_out_channels=(4, 8, 8, 8),
        num_layers=1,
        patch_size=patch,
        spatial_compression_ratio=ratio,
        temporal_compression_ratio=ratio,
        resolution=32,
        attention_resolutions=(8,),
        latents_mean=[float(i) for i in range(8)],
        latents_std=[2.0, 9.0, 4.0, 9.0, 6.0, 9.0, 8.0, 9.0],
    )


def wan() -> Any:
    """Autoencoder like that of Wan 2.1; `scale_factor_spatial` is 8 but its stride is 4."""
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    )


def wan_on_patches() -> Any:
    """Autoencoder like that of Wan 2.2: residual, with patches of 2 x 2 pixels."""
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=6,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 6,
        latents_std=[1.0] * 6,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )


MADE: dict[str, tuple[Callable[[], Any], int, int]] = {
    "Stable Diffusion": (kl, 4, 2),
    "Stable Diffusion 3": (kl_of_16_channels, 16, 2),
    "Stable Video Diffusion": (temporal_decoder, 4, 2),
    "tiny": (tiny, 5, 4),
    "DC": (dc, 4, 2),
    "Cosmos": (cosmos, 4, 4),
    "Cosmos, patches of 4": (lambda: cosmos(4, 8), 4, 8),
    "Wan 2.1": (wan, 4, 4),
    "Wan 2.2": (wan_on_patches, 6, 8),
}
"""Name -> constructor, latent channels and stride, counted by hand."""
every_autoencoder = pytest.mark.parametrize("name", MADE)


def made(name: str, folder: Path) -> Tokenizer:
    """Tokenizer built from a config, saved by diffusers and loaded by us."""
    torch.manual_seed(0)
    MADE[name][0]().eval().save_pretrained(folder)
    return Tokenizer.from_pretrained(folder)


def draw_frames(count: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    shape = (count, 3, height, width)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def test_every_kind_is_tested() -> None:
    assert {type(make()).__name__ for make, _, _ in MADE.values()} == set(KINDS)


@every_autoencoder
@torch.no_grad()
def test_latents_have_the_shape_that_channels_and_stride_say(name: str, tmp_path: Path) -> None:
    tokenizer, (_, channels, stride) = made(name, tmp_path), MADE[name]
    assert (tokenizer.channels, tokenizer.stride) == (channels, stride)
    latents = tokenizer.encode(draw_frames(1))
    assert latents.shape == (1, channels, 16 // stride, 24 // stride)
    assert tokenizer.decode(latents).shape == (1, 3, 16, 24)
    with pytest.raises(ValueError, match=rf"^`frames` must .* stride {stride}, got 17 x 24; "):
        tokenizer.encode(draw_frames(1, 17))


@every_autoencoder
@torch.no_grad()
def test_frames_of_a_batch_are_independent(name: str, tmp_path: Path) -> None:
    tokenizer, frames = made(name, tmp_path), draw_frames()
    latents = tokenizer.encode(frames)
    assert torch.equal(tokenizer.encode(frames), latents)  # the mode, not a draw
    one_by_one = torch.cat([tokenizer.encode(frame[None]) for frame in frames])
    torch.testing.assert_close(one_by_one, latents, atol=1e-5, rtol=1e-4)
    decoded = torch.cat([tokenizer.decode(latent[None]) for latent in latents])
    torch.testing.assert_close(decoded, tokenizer.decode(latents), atol=1e-5, rtol=1e-4)


@every_autoencoder
@torch.no_grad()
def test_latents_equal_those_of_the_autoencoder(name: str, tmp_path: Path) -> None:
    """The autoencoder is called as in diffusers' pipelines, for an image or a clip of one frame."""
    tokenizer, frame = made(name, tmp_path), draw_frames(1)
    autoencoder = tokenizer.autoencoder
    if "KL" in type(autoencoder).__name__:
        clip = frame[:, :, None] if name[:3] in ("Cos", "Wan") else frame
        raw = autoencoder.encode(clip).latent_dist.mode()
    else:
        raw = autoencoder.encode(frame)[0]
    options = {"num_frames": 1} if name == "Stable Video Diffusion" else {}
    back = autoencoder.decode(raw, **options).sample.reshape(frame.shape)
    raw = raw.reshape(1, tokenizer.channels, *raw.shape[-2:])
    mean, std = (value[:, None, None] for value in (tokenizer.mean, tokenizer.std))
    torch.testing.assert_close(tokenizer.encode(frame) * std + mean, raw)
    torch.testing.assert_close(tokenizer.decode((raw - mean) / std), back)


@every_autoencoder
@torch.no_grad()
def test_bottleneck_features_are_the_input_of_the_last_convolution(
    name: str, tmp_path: Path
) -> None:
    tokenizer, frames = made(name, tmp_path), draw_frames()
    before = tokenizer.encode(frames)
    encoder = tokenizer.autoencoder.encoder
    last = encoder.layers[-1] if name == "tiny" else encoder.conv_out
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokenizer.encode(frames)
    hook.remove()
    features = BottleneckInput(tokenizer)(frames)
    assert features.shape[-2:] == before.shape[-2:]
    torch.testing.assert_close(features, seen[0].reshape(features.shape))
    torch.testing.assert_close(tokenizer.encode(frames), before)  # the tokenizer is unchanged


@every_autoencoder
@torch.no_grad()
def test_whitening_survives_saving_and_loading(name: str, tmp_path: Path) -> None:
    tokenizer, frames = made(name, tmp_path / "made"), draw_frames(4)
    tokenizer.fit_whitening(frames.split(1))
    latents = tokenizer.encode(frames)
    channels = latents.movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)), atol=1e-4, rtol=0)
    deviation = channels.std(1, correction=0)
    torch.testing.assert_close(deviation, torch.ones(len(channels)), atol=1e-3, rtol=0)
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.encode(frames), latents)
    assert again.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("Stable Diffusion", [0.0] * 4, [1 / 0.18215] * 4),
        ("Stable Diffusion 3", [0.0609] * 16, [1 / 1.5305] * 16),
        ("Stable Video Diffusion", [0.0] * 4, [1 / 0.18215] * 4),
        ("tiny", [0.0] * 5, [1.0] * 5),
        ("DC", [0.0] * 4, [1 / 0.41407] * 4),
        ("Cosmos", [0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0]),  # of the first latent frame
        ("Wan 2.1", [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]),
    ],
)
def test_before_it_is_fitted_whitening_is_the_autoencoders_own(
    name: str, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    """As diffusers' pipelines scale latents: (z - shift) * scale, or (z - mean) / std."""
    tokenizer = made(name, tmp_path)
    torch.testing.assert_close(tokenizer.mean, torch.tensor(mean))
    torch.testing.assert_close(tokenizer.std, torch.tensor(std))


def test_statistics_and_scale_go_together() -> None:
    """As in diffusers' pipeline of Stable Diffusion XL: (z - mean) * scale / std."""
    statistics = {"latents_mean": [1.0, 2, 3, 4], "latents_std": [2.0, 2, 4, 4]}
    config = kl(scaling_factor=0.5, **statistics).config
    mean, std = KINDS["AutoencoderKL"].whitening(config)
    assert (mean.tolist(), std.tolist()) == ([1, 2, 3, 4], [4, 4, 8, 8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [0.0] * 3}, "hold 4 values in `latents_mean`, one per .*, got 3"),
        ({"latents_mean": [0.0] * 8}, "hold 4 values in `latents_mean`, one per .*, got 8"),
        ({"latents_std": [1.0, 0, 1, 1]}, r"positive .* `latents_std`, got .*\[1\.0, 0, 1, 1\]"),
        ({"scaling_factor": 0.0}, "positive `scaling_factor` and .*, got 0.0 and None"),
    ],
)
def test_invalid_statistics_are_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    kl(**changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^No usable autoencoder in '.*': its .*{message}\.$"):
        Tokenizer.from_pretrained(tmp_path)


def test_an_autoencoder_of_another_class_is_refused() -> None:
    message = r"^`autoencoder` must be one of AutoencoderKL, .*, got Linear\.$"
    with pytest.raises(ValueError, match=message):
        Tokenizer(nn.Linear(2, 2), torch.zeros(2), torch.ones(2))
    assert kind_of("AutoencoderKLWan") is KINDS["AutoencoderKLWan"]
