"""Shape checks in every test, and where real data lie."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before torch and BLAS load: the workers of `pytest -n` share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

install_import_hook(["worldmodel", "benchmarks"], "beartype.beartype")

# The base install has no PyTorch; the monitors' tests run there without these fixtures.
pytest_plugins = ["tests.model_fixtures"] if find_spec("torch") else []


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real Bridge and DROID episodes."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("WORLDMODEL_DATA", default))
    if not (folder / "droid").is_dir():
        pytest.skip(f"real episodes not found in {folder}; set WORLDMODEL_DATA to their folder")
    return folder
