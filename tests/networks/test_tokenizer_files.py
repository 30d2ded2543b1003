import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from worldmodel.networks.tokenizer import Tokenizer, TokenizerConfig
from worldmodel.networks.tokenizer_files import WHITENING

SMALL = TokenizerConfig(channels=4, widths=(4, 8, 8), layers=(0, 1, 1))
WEIGHTS = "diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def frames() -> torch.Tensor:
    return 2 * torch.rand((2, 3, 16, 24), generator=torch.Generator().manual_seed(0)) - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a saved tokenizer with fitted whitening."""
    torch.manual_seed(0)
    Tokenizer.from_config(SMALL).fit_whitening([frames()]).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offline hub cache that holds `org/name`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize("subfolder", ["", "/vae", "/first/vae"])
@torch.no_grad()
def test_a_hub_name_may_include_a_subfolder(
    subfolder: str, folder: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, hub / subfolder.strip("/"))
    tokenizer = Tokenizer.from_pretrained(f"org/name{subfolder}")
    assert tokenizer.fingerprint() == Tokenizer.from_pretrained(folder).fingerprint()
    shutil.copytree(folder, tmp_path / f"org/name{subfolder}")  # a local folder has priority
    (tmp_path / f"org/name{subfolder}" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"^No autoencoder in 'org/name"):
        Tokenizer.from_pretrained(f"org/name{subfolder}")


def test_a_failed_download_is_a_one_line_error(folder: Path, hub: Path) -> None:
    message = r"^No tokenizer in 'org/other': there is no such folder, and the download .* failed"
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_pretrained("org/other/vae")
    assert "\n" not in str(caught.value)
    shutil.copytree(folder, hub / "vae")
    message = r"^No autoencoder in 'org/name': .* give the folder .*, for example 'org/name/vae'\.$"
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_pretrained("org/name")


@pytest.mark.parametrize("source", ["nix", "/no/such/vae", "./org/name", "../org/name", "a b/c"])
def test_other_strings_than_hub_names_are_missing_folders(source: str) -> None:
    with pytest.raises(ValueError, match=r"^No tokenizer in '.*': there is no such folder\.$"):
        Tokenizer.from_pretrained(source)


def test_a_missing_path_is_refused_without_asking_the_network(tmp_path: Path) -> None:
    for path in (tmp_path / "nix", Path("org/name")):
        with pytest.raises(ValueError, match=r"^No tokenizer in '.*': there is no such folder\.$"):
            Tokenizer.from_pretrained(path)


@torch.no_grad()
def test_old_names_of_attention_weights_load(tmp_path: Path) -> None:
    """Checkpoints of Stable Diffusion 1 use them."""
    torch.manual_seed(0)
    shape = {"block_out_channels": (8,), "norm_num_groups": 2, "latent_channels": 4}
    diffusers.AutoencoderKL(**shape).save_pretrained(tmp_path)
    expected = Tokenizer.from_pretrained(tmp_path).encode(frames())
    weights = load_file(tmp_path / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any(".query." in key for key in weights)
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    assert torch.equal(Tokenizer.from_pretrained(tmp_path).encode(frames()), expected)


def damage(folder: Path, name: str) -> None:
    """Corrupt a saved tokenizer in the way `name` says."""
    config, weights = folder / "config.json", folder / WEIGHTS
    if name == "no weights":
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
        diffusers.AutoencoderTiny(latent_channels=4).save_pretrained(folder.with_name("tiny"))
        weights.write_bytes((folder.with_name("tiny") / weights.name).read_bytes())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no weights", "Error no file named diffusion_pytorch_model"),
        ("truncated", "Unable to load weights from checkpoint file"),
        ("no JSON", "is not valid JSON"),
        ("another class", r"`autoencoder` must be one of AutoencoderKL, .*, got UNet2DModel\.$"),
        ("a list", r"expected `object`, got `array`"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"^'.*whitening\.json' must hold the lists `mean` and `std`: "),
        ('{"mean": [0, 0, 0, 0]}', "must hold the lists `mean` and `std`"),
        (
            '{"mean": [0], "std": [1]}',
            r"must hold 4 means .*, got \[0.0\] and \[1.0\]",
        ),
        (
            '{"mean": [0, 0, 0, 0], "std": [1, 0, 1, 1]}',
            r"must .* and \[1.0, 0.0, 1.0, 1.0\]",
        ),
    ],
)
def test_damaged_whitening_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / WHITENING).write_text(text)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_pretrained(folder)
