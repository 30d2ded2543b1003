"""Choice of a renderer: `gl` (EGL or OSMesa), `ray` (no OpenGL), or `auto`."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import subprocess
import sys
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from worldmodel.envs.factors import Domain, lookup

RENDERERS = {
    "auto": "gl where a probe frame is right, else ray",
    "gl": "MuJoCo's OpenGL renderer through EGL or OSMesa",
    "ray": "MuJoCo's ray caster and NumPy: runs everywhere",
}
PROBE_TIMEOUT_S = 60


class Renderer(Protocol):
    """Draws the camera's view of a simulation."""

    name: str
    description: str
    """The driver that draws, for provenance."""

    def render(self, data: Any, domain: Domain) -> UInt8[np.ndarray, "height width 3"]: ...

    def close(self) -> None: ...


def resolve_renderer(name: str) -> str:
    """Turn a requested renderer into "gl" or "ray", and import MuJoCo with the matching `MUJOCO_GL`."""
    lookup("renderer", name, RENDERERS)
    if name == "auto":
        name = "gl" if gl_works() else "ray"
    _import_mujoco("disable" if name == "ray" else gl_backend())
    return name


def make_renderer(name: str, model: Any, height: int, width: int) -> Renderer:
    """A renderer of `model`'s camera; `name` is a result of `resolve_renderer`."""
    if name == "ray":
        from worldmodel.envs.ray_renderer import RayRenderer

        return RayRenderer(model, height, width)
    from worldmodel.envs.gl_renderer import GlRenderer

    return GlRenderer(model, height, width)


def gl_backend() -> str:
    """The value of `MUJOCO_GL` to use: the user's, else "egl" or "osmesa"."""
    if os.environ.get("MUJOCO_GL"):
        return os.environ["MUJOCO_GL"]
    if _loads("libEGL.so.1") and (_loads("libGL.so.1") or _loads("libOpenGL.so.0")):
        return "egl"
    if _loads("libOSMesa.so.8") or _loads("libOSMesa.so"):
        return "osmesa"
    raise ValueError(
        "`renderer='gl'` found neither EGL nor OSMesa; install libegl1 and libgl1, or use 'ray'."
    )


@functools.cache
def gl_works() -> bool:
    """Whether a fresh process draws a right picture by OpenGL."""
    try:
        backend = gl_backend()
    except ValueError:
        return False
    probe = [sys.executable, "-m", "worldmodel.envs.gl_renderer"]
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        outcome = subprocess.run(
            probe, env=environment, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return outcome.returncode == 0


def _import_mujoco(backend: str) -> None:
    """Import MuJoCo under a backend: it reads `MUJOCO_GL` once, when it is imported."""
    if "mujoco" in sys.modules:
        return
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = backend
    try:
        import mujoco  # noqa: F401
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
