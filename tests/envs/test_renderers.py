"""The choice of a renderer, and OpenGL against rays where OpenGL works."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from worldmodel.envs import renderers
from worldmodel.envs.renderers import gl_backend, gl_works, resolve_renderer

COMPARE = """
import sys, numpy as np
from worldmodel.envs.renderers import make_renderer
from worldmodel.envs.tabletop import TabletopEnv
env = TabletopEnv(renderer="gl", size=96)
twin = TabletopEnv(renderer="gl", size=96)
gl = [env.reset(seed=seed)[0]["image"] for seed in range(3)]
twin.close()
gl.append(env.reset(seed=2)[0]["image"])
rays = make_renderer("ray", env.simulation.model, 96, 96)
ray = rays.render(env.simulation.data, env.domain)
np.savez(sys.argv[1], gl=np.array(gl), ray=ray)
"""


def test_unknown_renderer_says_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown renderer 'rays'; known: auto, gl, ray\. Did"):
        resolve_renderer("rays")


def test_gl_without_libraries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(renderers, "_loads", lambda library: False)
    with pytest.raises(ValueError, match="found neither EGL nor OSMesa: install libegl1 and libgl"):
        resolve_renderer("gl")


def test_backend_is_the_users_then_egl_then_osmesa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert gl_backend() == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(renderers, "_loads", lambda library: library != "libGL.so.1")
    assert gl_backend() == "egl"
    monkeypatch.setattr(renderers, "_loads", lambda library: library == "libOSMesa.so.8")
    assert gl_backend() == "osmesa"


def test_auto_falls_back_to_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderers, "gl_works", lambda: False)
    assert resolve_renderer("auto") == "ray"


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_process_keeps_one_kind_of_renderer_and_its_environment() -> None:
    code = """
import json, os, sys
import worldmodel.envs
early = "mujoco" in sys.modules
from worldmodel.envs.renderers import resolve_renderer
before = dict(os.environ)
resolve_renderer("ray")
try:
    resolve_renderer("gl")
except ValueError as error:
    print(json.dumps([early, str(error), before == dict(os.environ), resolve_renderer("auto")]))
"""
    early, error, unchanged, auto = json.loads(run(code))
    assert not early
    assert "one kind of renderer per process" in error or "neither EGL nor OSMesa" in error
    assert unchanged
    assert auto == "ray"


def test_opengl_and_rays_agree_on_geometry(tmp_path: Path) -> None:
    if not gl_works():
        pytest.skip("OpenGL draws nothing here; install libegl1 and libgl1")
    run(COMPARE, str(tmp_path / "pictures.npz"))
    with np.load(tmp_path / "pictures.npz") as pictures:
        gl, ray = pictures["gl"].astype(int), pictures["ray"].astype(int)
    assert np.array_equal(gl[2], gl[3])  # closing another renderer changed nothing
    assert np.std(gl[0]) > 20

    def block(image: np.ndarray) -> np.ndarray:
        return (image[..., 0] > 60) & (image[..., 0] > 2.5 * image[..., 1])

    overlap = (block(gl[3]) & block(ray)).sum() / (block(gl[3]) | block(ray)).sum()
    assert overlap > 0.8
