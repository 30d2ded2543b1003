"""Optional dependencies: which extra of `worldmodel` installs a package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "OpenGL": ("PyOpenGL", "tabletop"),
    "PIL": ("Pillow", "report"),
    "accelerate": ("Accelerate", "train"),
    "av": ("PyAV", "data"),
    "diffusers": ("Diffusers", "model"),
    "einops": ("einops", "model"),
    "google_crc32c": ("google-crc32c", "data"),
    "gymnasium": ("Gymnasium", "tabletop"),
    "h5py": ("h5py", "data"),
    "huggingface_hub": ("the Hugging Face hub client", "model"),
    "matplotlib": ("Matplotlib", "report"),
    "mujoco": ("MuJoCo", "tabletop"),
    "prometheus_client": ("the Prometheus client", "model"),
    "pyarrow": ("PyArrow", "data"),
    "ray": ("Ray", "ray"),
    "rerun": ("Rerun", "view"),
    "simplejpeg": ("simplejpeg", "data"),
    "tensorboard": ("TensorBoard", "train"),
    "torch": ("PyTorch", "model"),
    "torchmetrics": ("TorchMetrics", "train"),
    "yaml": ("PyYAML", "model"),
    "zarr": ("Zarr", "data"),
}
"""Imported package -> its name in messages, and the extra that installs it."""


@contextmanager
def explain_missing(user: str) -> Iterator[None]:
    """Replace the error for a package that is not installed by a sentence that names its extra.

    Args:
        user: What needs the package, such as "worldmodel imagine".

    Raises:
        ImportError: "`worldmodel imagine` needs PyTorch: pip install 'worldmodel[model]'."
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        name, extra = EXTRAS[package]
        raise ImportError(f"`{user}` needs {name}: pip install 'worldmodel[{extra}]'.") from error
