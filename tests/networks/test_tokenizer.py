import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldmodel.networks.images import to_model, to_pixels
from worldmodel.networks.tokenizer import Tokenizer, TokenizerConfig

SMALL = TokenizerConfig(channels=4, widths=(4, 8, 8), layers=(0, 1, 1))


def draw_frames(count: int = 2, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    shape = (count, 3, height, width)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a saved tokenizer with fitted whitening."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_config(SMALL).fit_whitening([draw_frames()])
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_to_pixels_inverts_to_model() -> None:
    """Exact for all 256 values in every channel."""
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
    tokenizer.fit_whitening(batches)  # a second fit forgets the first
    torch.testing.assert_close(tokenizer.mean, fitted)
    with pytest.raises(ValueError, match=r"^`batches` must hold at least one batch .* got none\.$"):
        tokenizer.fit_whitening([])


@torch.no_grad()
def test_decoding_undoes_the_whitening(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    raw = tokenizer.autoencoder.encode(draw_frames()).latent
    decoded = tokenizer.decode(tokenizer.encode(draw_frames()))
    torch.testing.assert_close(decoded, tokenizer.autoencoder.decode(raw).sample)


@torch.no_grad()
def test_a_tokenizer_survives_saving_and_loading(folder: Path, tmp_path: Path) -> None:
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


@torch.no_grad()
def test_the_fingerprint_changes_with_anything_that_changes_latents(folder: Path) -> None:
    """Whitening, weights, and a config change that does not affect the weights."""
    tokenizer = Tokenizer.from_pretrained(folder)
    prints = [tokenizer.fingerprint()]
    tokenizer.std[1] *= 2
    prints.append(tokenizer.fingerprint())
    next(tokenizer.parameters()).flatten()[0] += 1e-3
    prints.append(tokenizer.fingerprint())
    tokenizer.autoencoder.register_to_config(decoder_act_fns="relu")
    prints.append(tokenizer.fingerprint())
    assert len(set(prints)) == 4
    assert tokenizer.to(torch.bfloat16).fingerprint() not in prints


@pytest.mark.parametrize("shape", [(18, 24), (16, 30), (1, 4), (17, 23), (0, 4)])
def test_sizes_that_the_stride_does_not_divide_are_refused(shape: tuple[int, int]) -> None:
    tokenizer = Tokenizer.from_config(SMALL)
    height, width = shape
    with pytest.raises(
        ValueError, match=r"^`frames` must have .* multiples of .* 4, got "
    ) as error:
        tokenizer.encode(draw_frames(1, height, width))
    assert f"got {height} x {width}; resize them, for example to " in str(error.value)
    near = [int(side) for side in re.findall(r"to (\d+) x (\d+)\.$", str(error.value))[0]]
    assert tokenizer.encode(draw_frames(1, *near)).shape[-2:] == (near[0] // 4, near[1] // 4)
    with pytest.raises(ValueError, match=r"^`frames` must have "):
        tokenizer.fit_whitening([draw_frames(1, height, width)])


@torch.no_grad()
def test_the_examples_in_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "tokenizers.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(examples[0], names)  # the code is from our own docs
    assert names["latents"].shape == (8, 4, 8, 12)
    assert names["decoded"].shape == (8, 3, 64, 96)
    exec(examples[1], names)
    assert names["tokenizer"].mean.tolist() == [0, 0, 0, 0]
    again = Tokenizer.from_pretrained("my-tokenizer")
    assert torch.equal(again.encode(names["frames"]), names["latents"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": (0, 1)},
            r"^`widths` and `layers` must have equal length, got \(16, 32, 64, 128\) and "
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
