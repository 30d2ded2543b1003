"""Renderer selection: `gl` (EGL or OSMesa), `ray` (no OpenGL), or `auto`.

MuJoCo reads `MUJOCO_GL` once, when it is imported, so a process has one kind of renderer.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import subprocess
import sys
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from worldmodel.envs.factors import Domain
from worldmodel.envs.registry import lookup

RENDERERS = {
    "auto": "gl if its probe frame is correct, else ray",
    "gl": "MuJoCo's OpenGL renderer through EGL or OSMesa",
    "ray": "MuJoCo's ray caster and NumPy: runs everywhere",
}
NO_OPENGL = "disable"
"""Value of `MUJOCO_GL` with which MuJoCo loads no OpenGL library."""
PROBE_TIMEOUT_S = 60


@runtime_checkable
class Renderer(Protocol):
    """Renders the camera of a simulation."""

    name: str
    description: str
    """Name of the driver, for provenance."""

    def render(self, data: Any, domain: Domain) -> UInt8[np.ndarray, "height width 3"]: ...

    def close(self) -> None: ...


def resolve_renderer(name: str) -> str:
    """Resolve a requested renderer to "gl" or "ray", and import MuJoCo for it."""
    lookup("renderer", name, RENDERERS)
    if name == "auto":
        name = "gl" if gl_works() and _imported_backend() in ("", gl_backend()) else "ray"
    wanted = gl_backend() if name == "gl" else NO_OPENGL
    backend = _imported_backend() or _import_mujoco(wanted)
    if name == "gl" and backend != wanted:
        raise ValueError(
            f"`renderer='gl'` needs MuJoCo imported with MUJOCO_GL={wanted}, but this process has "
            f"imported it with {backend!r}; use one kind of renderer per process."
        )
    return name


def make_renderer(name: str, model: Any, height: int, width: int) -> Renderer:
    """Create a renderer of `model`'s camera; `name` is a result of `resolve_renderer`."""
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
    if _loads("libOSMesa.so.8"):
        return "osmesa"
    raise ValueError(
        "`renderer='gl'` found neither EGL nor OSMesa: install libegl1 and libgl1, or use 'ray'."
    )


@functools.cache
def gl_works() -> bool:
    """Whether OpenGL renders a correct probe frame in a new process."""
    try:
        backend = gl_backend()
    except ValueError:
        return False
    probe = [sys.executable, "-m", "worldmodel.envs.gl_renderer"]
    variables = {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run(
            probe, env=variables, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _imported_backend() -> str:
    """Backend of the imported MuJoCo; "" if MuJoCo is not imported."""
    if "mujoco" not in sys.modules:
        return ""
    context = getattr(importlib.import_module("mujoco.gl_context"), "GLContext", None)
    return context.__module__.rpartition(".")[2] if context else NO_OPENGL


def _import_mujoco(backend: str) -> str:
    """Import MuJoCo with a backend and restore the environment variable."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = backend
    try:
        importlib.import_module("mujoco")
    except (AttributeError, ImportError, RuntimeError) as error:
        reason = f"MuJoCo cannot be imported with MUJOCO_GL={backend} ({error}); use 'ray'."
        raise ValueError(f"`renderer='gl'` does not work here: {reason}") from error
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before
    return backend


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
