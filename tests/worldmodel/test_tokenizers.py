import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from worldmodel.tokenizers import (
    WHITENING,
    Tokenizer,
    TokenizerConfig,
    encode_deterministically,
    to_model,
    to_pixels,
)

SMALL = TokenizerConfig(channels=4, widths=(4, 8, 8), layers=(0, 1, 1))


def tiny() -> diffusers.AutoencoderTiny:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=5,
    )


def kl() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=3,
    )


def draw_frames(count: int = 2, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    shape = (count, 3, height, width)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer saved, whitening and all."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_config(SMALL).fit_whitening([draw_frames()])
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_pixels_survive_the_way_to_the_model_and_back() -> None:
    """All 256 values in every channel, exactly."""
    values = torch.arange(256, dtype=torch.uint8)
    frames = torch.stack((values, values.flip(0), values.roll(7)), -1).reshape(1, 16, 16, 3)
    scaled = to_model(frames)
    assert scaled.shape == (1, 3, 16, 16)
    assert (scaled.min(), scaled.max()) == (-1.0, 1.0)
    assert torch.equal(to_pixels(scaled), frames)
    beyond = torch.tensor([-3.0, 3.0]).reshape(1, 1, 2).expand(3, 1, 2)
    assert to_pixels(beyond)[0, :, 0].tolist() == [0, 255]


@torch.no_grad()
def test_whitening_makes_mean_zero_and_deviation_one_over_all_batches() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_config(SMALL)
    batches = [draw_frames(3, seed=1) * 0.2, draw_frames(1, 32, 16, seed=2)]
    tokenizer.fit_whitening(batches)
    latents = torch.cat([tokenizer.encode(b).movedim(1, -1).reshape(-1, 4) for b in batches])
    torch.testing.assert_close(latents.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    fitted = tokenizer.mean.clone()
    tokenizer.fit_whitening(batches)  # forgets the earlier fit instead of adding to it
    torch.testing.assert_close(tokenizer.mean, fitted)
    with pytest.raises(ValueError, match=r"^`batches` is empty: whitening needs frames\.$"):
        tokenizer.fit_whitening([])


@torch.no_grad()
def test_decoding_undoes_the_whitening(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    raw = encode_deterministically(tokenizer.autoencoder, draw_frames())
    decoded = tokenizer.decode(tokenizer.encode(draw_frames()))
    torch.testing.assert_close(decoded, tokenizer.autoencoder.decode(raw).sample)


@torch.no_grad()
def test_a_saved_tokenizer_comes_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    assert not torch.equal(tokenizer.std, torch.ones(4))
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.from_pretrained(str(tmp_path / "again"))
    assert torch.equal(again.encode(draw_frames()), tokenizer.encode(draw_frames()))
    assert again.fingerprint() == tokenizer.fingerprint()
    again.mean += 1
    assert again.fingerprint() != tokenizer.fingerprint()


@torch.no_grad()
def test_half_precision_on_disk_is_float32_in_memory(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.save(tmp_path / "half", dtype=torch.float16)
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "half" / name).stat().st_size < 0.7 * (folder / name).stat().st_size
    half = Tokenizer.from_pretrained(tmp_path / "half")
    assert next(half.parameters()).dtype == next(tokenizer.parameters()).dtype == torch.float32
    close = {"atol": 0.02, "rtol": 0.02}
    torch.testing.assert_close(half.encode(draw_frames()), tokenizer.encode(draw_frames()), **close)


def test_frames_come_back_from_diffusers_autoencoders(tmp_path: Path) -> None:
    """The latent is the mode: encoding twice gives the same, and the class's own answer."""
    for name, make in (("kl", kl), ("tiny", tiny)):
        torch.manual_seed(0)
        autoencoder = make().eval()
        autoencoder.save_pretrained(tmp_path / name)
        tokenizer = Tokenizer.from_pretrained(tmp_path / name)
        assert torch.equal(tokenizer.std, torch.ones(tokenizer.channels))
        frames = draw_frames(1, 16, 32)
        with torch.no_grad():
            latents = tokenizer.encode(frames)
            own = autoencoder.encode(frames)
            expected = own.latents if name == "tiny" else own.latent_dist.mean
            torch.testing.assert_close(latents, expected)
            torch.testing.assert_close(
                tokenizer.decode(latents), autoencoder.decode(expected).sample
            )


@pytest.mark.parametrize(
    ("make", "channels", "stride"),
    [
        (lambda: Tokenizer.from_config(SMALL), 4, 4),
        (lambda: Tokenizer.from_config(TokenizerConfig()), 8, 8),
        (lambda: Tokenizer(tiny(), torch.zeros(5), torch.ones(5)), 5, 8),
        (lambda: Tokenizer(kl(), torch.zeros(3), torch.ones(3)), 3, 2),
    ],
    ids=["small", "default", "tiny", "kl"],
)
@torch.no_grad()
def test_stride_is_what_encoding_does(
    make: Callable[[], Tokenizer], channels: int, stride: int
) -> None:
    tokenizer = make()
    assert (tokenizer.channels, tokenizer.stride) == (channels, stride)
    latents = tokenizer.encode(draw_frames(1, 16, 32))
    assert latents.shape == (1, channels, 16 // stride, 32 // stride)
    assert tokenizer.decode(latents).shape == (1, 3, 16, 32)


def damage(folder: Path, name: str) -> None:
    """Break a saved tokenizer in the way named."""
    config, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    if name == "no config":
        config.unlink()
    elif name == "no weights":
        weights.unlink()
    elif name == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif name == "no JSON":
        config.write_text("{")
    elif name == "another class":
        config.write_text(json.dumps({"_class_name": "UNet2DModel"}))
    elif name == "a list":
        config.write_text("[]")
    elif name == "another shape":
        config.write_text(
            config.read_text().replace('"latent_channels": 4', '"latent_channels": 2')
        )
    else:
        tiny().save_pretrained(folder.with_name("tiny"))
        weights.write_bytes((folder.with_name("tiny") / weights.name).read_bytes())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no config", "Error no file named config.json found in directory"),
        ("no weights", "Error no file named diffusion_pytorch_model"),
        ("truncated", "Unable to load weights from checkpoint file"),
        ("no JSON", "is not a valid JSON file"),
        ("another class", "its config.json is of UNet2DModel"),
        ("a list", "its config.json is of None"),
        ("another shape", r"expected shape .*, but got .*"),
        ("another autoencoder's weights", "its weights lack "),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(folder: Path, name: str, reason: str) -> None:
    damage(folder, name)
    message = rf"^No readable diffusers autoencoder in '.*tokenizer': .*{reason}.*"
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused_without_asking_the_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^No tokenizer in '.*nix': there is no such folder\.$"):
        Tokenizer.from_pretrained(tmp_path / "nix")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"^'.*whitening\.json' holds no whitening \(lists `mean` and `std`\)\.$"),
        ('{"mean": [0, 0, 0, 0]}', "holds no whitening"),
        ('{"mean": [0], "std": [1]}', r"must hold 4 means and positive .*, got \[0\] and \[1\]\.$"),
        ('{"mean": [0, 0, 0, 0], "std": [1, 0, 1, 1]}', r"must hold .* and \[1, 0, 1, 1\]\.$"),
    ],
)
def test_damaged_whitening_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / WHITENING).write_text(text)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": (0, 1)},
            r"^`widths` and `layers` must be of one length, got \(16, 32, 64, 128\) and "
            r"\(0, 1\)\.$",
        ),
        (
            {"channels": 6},
            r"^`channels` must divide the last of `widths`, got 6 and \(16, 32, 64, 128\)\.$",
        ),
    ],
)
def test_impossible_tokenizers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**changes)
