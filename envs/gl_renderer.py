"""MuJoCo's OpenGL renderer. Run as a module, it renders a probe frame and checks it."""

from __future__ import annotations

import atexit
import sys
import weakref
from typing import Any

import mujoco
import numpy as np
from jaxtyping import UInt8

from worldmodel.envs.factors import Domain

PROBE_XML = """
<mujoco>
 <visual><headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/></visual>
 <worldbody>
  <camera name="camera" pos="0 0 2" fovy="45"/>
  <geom type="plane" size="5 5 .1" rgba="0 0 1 1"/>
  <geom type="box" size=".3 .3 .1" rgba="1 0 0 1"/>
 </worldbody>
</mujoco>
"""


class GlRenderer:
    """Renders one camera of one model at a fixed size, with shadows and without reflections."""

    name = "gl"

    def __init__(self, model: Any, height: int, width: int) -> None:
        self._renderer = mujoco.Renderer(model, height, width)
        self.description = _driver()
        _open_renderers.add(self)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # registered after MuJoCo's handler, so it runs first

    def render(self, data: Any, domain: Domain) -> UInt8[np.ndarray, "height width 3"]:
        """Image of the model's camera; `domain` is ignored, the model already has its colours."""
        self._renderer.update_scene(data, camera=0)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


def _driver() -> str:
    """Name of the OpenGL device or software renderer."""
    from OpenGL import GL  # loads libGL, so import it only after a context exists

    return str(GL.glGetString(GL.GL_RENDERER).decode())


_open_renderers: weakref.WeakSet[GlRenderer] = weakref.WeakSet()


def _close_all() -> None:
    """Close open renderers at exit, before the OpenGL display closes."""
    for renderer in list(_open_renderers):
        renderer.close()


def probe() -> bool:
    """Whether a red box on a blue plane is rendered in red and blue."""
    model = mujoco.MjModel.from_xml_string(PROBE_XML)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = GlRenderer(model, 32, 32)
    image = renderer.render(data, Domain()).astype(int)
    renderer.close()
    red, blue = image[16, 16] - image[0, 0], image[0, 0] - image[16, 16]
    return bool(red[0] > 100 and blue[2] > 100)


if __name__ == "__main__":
    sys.exit(not probe())
