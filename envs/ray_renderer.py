"""Ray renderer without OpenGL: MuJoCo traces the rays, NumPy shades them.

One bundle of rays starts at the camera, and a second one at the lamp for shadows. Pixels on edges
are traced again with four rays each.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from worldmodel.envs.factors import Domain

EDGE = 0.06
"""Difference between neighbouring pixels above which both are traced again."""
SHADOW = np.float32(0.25)
"""Share of the direct light that reaches a shadowed point."""
SHADOW_SLACK = 0.004
"""Smallest distance (m) between an occluder and the point it shadows."""
TILE = 8192
"""Rays traced at once; larger tiles do not fit the processor's cache."""
MAX_DISTANCE = 1e3


class RayRenderer:
    """Renders one camera of one model at a fixed size."""

    name = "ray"
    description = "mj_multiRay"

    def __init__(self, model: Any, height: int, width: int) -> None:
        self.model, self.height, self.width = model, height, width
        self._table, self._wall = model.geom("table").id, model.geom("wall").id
        self._bundles: dict[tuple[float, int], Float[np.ndarray, "rays 3"]] = {}

    def render(self, data: Any, domain: Domain) -> UInt8[np.ndarray, "height width 3"]:
        """The picture of the model's camera in the state `data`."""
        to_world = data.cam_xmat[0].reshape(3, 3).T
        image = self._shade(self._directions(1) @ to_world, data, domain)
        edges = np.flatnonzero(edge_mask(image.reshape(self.height, self.width, 3)))
        fine = self._directions(2).reshape(-1, 4, 3)[edges].reshape(-1, 3) @ to_world
        image[edges] = self._shade(fine, data, domain).reshape(-1, 4, 3).mean(1)
        return (image * 255 + 0.5).astype(np.uint8).reshape(self.height, self.width, 3)

    def close(self) -> None:
        """Nothing to release."""

    def _directions(self, supersampling: int) -> Float[np.ndarray, "rays 3"]:
        key = float(self.model.cam_fovy[0]), supersampling
        if key not in self._bundles:
            self._bundles[key] = pinhole_directions(self.height, self.width, *key)
        return self._bundles[key]

    def _shade(
        self, directions: Float[np.ndarray, "rays 3"], data: Any, domain: Domain
    ) -> Float32[np.ndarray, "rays 3"]:
        colors = np.empty((len(directions), 3), np.float32)
        for start in range(0, len(directions), TILE):
            tile = slice(start, start + TILE)
            colors[tile] = self._shade_tile(directions[tile], data, domain)
        return colors

    def _shade_tile(
        self, directions: Float[np.ndarray, "rays 3"], data: Any, domain: Domain
    ) -> Float32[np.ndarray, "rays 3"]:
        origin = data.cam_xpos[0].copy()
        geoms, distances, normals = self._trace(data, origin, directions)
        view = directions.astype(np.float32)
        points = origin.astype(np.float32) + view * distances.astype(np.float32)[:, None]
        to_light = data.light_xpos[0].astype(np.float32) - points
        light_distance = np.sqrt(np.einsum("rc,rc->r", to_light, to_light))
        to_light /= light_distance[:, None]
        diffuse = np.maximum(np.einsum("rc,rc->r", normals, to_light), 0)
        blocker = self._trace(data, data.light_xpos[0].copy(), -to_light.astype(np.float64))[1]
        shadowed = (blocker >= 0) & (blocker < light_distance - SHADOW_SLACK)
        diffuse[shadowed] *= SHADOW
        glow = domain.ambient + diffuse[:, None] * np.array(domain.light_rgb, np.float32)
        colors = self._albedo(geoms, points, domain) * glow.astype(np.float32)
        colors += (0.15 * (diffuse > 0) * highlight(normals, to_light, view))[:, None]
        colors[geoms < 0] = np.array(domain.wall_rgb) * domain.ambient * 1.5
        return np.minimum(colors, 1)

    def _trace(
        self, data: Any, origin: Float[np.ndarray, " 3"], directions: Float[np.ndarray, "rays 3"]
    ) -> tuple[Int[np.ndarray, " rays"], Float[np.ndarray, " rays"], Float32[np.ndarray, "rays 3"]]:
        """Geom (-1: none), distance (m; -1: none) and surface normal at the end of each ray."""
        rays = len(directions)
        geoms, distances, normals = np.empty(rays, np.int32), np.empty(rays), np.empty(3 * rays)
        mujoco.mj_multiRay(
            self.model, data, origin, directions.reshape(-1), None, 1, -1,
            geoms, distances, normals, rays, MAX_DISTANCE,
        )  # fmt: skip
        return geoms, distances, normals.reshape(rays, 3).astype(np.float32)

    def _albedo(
        self,
        geoms: Int[np.ndarray, " rays"],
        points: Float32[np.ndarray, "rays 3"],
        domain: Domain,
    ) -> Float32[np.ndarray, "rays 3"]:
        colors = self.model.geom_rgba[geoms, :3]
        for geom, axes, pattern, second in (
            (self._table, (0, 1), domain.table_pattern, np.array(domain.table_rgb2)),
            (self._wall, (1, 2), domain.wall_pattern, 0.6 * np.array(domain.wall_rgb)),
        ):
            if pattern != "flat":
                surface = np.flatnonzero(geoms == geom)
                marked = pattern_mask(pattern, *points[surface][:, axes].T)
                colors[surface[marked]] = second
        return colors


def pinhole_directions(
    height: int, width: int, fovy_deg: float, supersampling: int
) -> Float[np.ndarray, "rays 3"]:
    """Unit view directions in the camera frame, in row-major pixel order.

    With `supersampling` 2, the four rays of a pixel are adjacent.
    """
    rows, columns = height * supersampling, width * supersampling
    focal = 0.5 / np.tan(np.deg2rad(fovy_deg) / 2) * rows
    x = (np.arange(columns) - columns / 2 + 0.5) / focal
    y = -(np.arange(rows) - rows / 2 + 0.5) / focal
    rays = np.stack(np.broadcast_arrays(x[None], y[:, None], -1.0), axis=-1)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    blocks = rays.reshape(height, supersampling, width, supersampling, 3)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3, 4)).reshape(-1, 3)


def edge_mask(
    image: Float32[np.ndarray, "height width 3"],
) -> Bool[np.ndarray, "height width"]:
    """Pixels that differ visibly from a direct neighbour."""
    edges = np.zeros(image.shape[:2], bool)
    red_across, green_across, blue_across = np.moveaxis(
        np.abs(np.diff(image, axis=1)) > EDGE, -1, 0
    )
    red_down, green_down, blue_down = np.moveaxis(np.abs(np.diff(image, axis=0)) > EDGE, -1, 0)
    across = red_across | green_across | blue_across  # several times faster than any(-1)
    down = red_down | green_down | blue_down
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def pattern_mask(
    pattern: str, a: Float32[np.ndarray, " points"], b: Float32[np.ndarray, " points"]
) -> Bool[np.ndarray, " points"]:
    """Mask of the pattern's second colour; `a` and `b` are surface coordinates in metres."""
    if pattern == "checker":
        return (np.floor(a * 12) + np.floor(b * 12)) % 2 > 0
    if pattern == "stripe":
        return np.floor(b * 16 + 0.15 * np.sin(a * 20)) % 2 > 0
    return np.sin(a * 40) * np.sin(b * 37 + np.sin(a * 23)) > 0.1


def highlight(
    normals: Float32[np.ndarray, "rays 3"],
    to_light: Float32[np.ndarray, "rays 3"],
    view: Float32[np.ndarray, "rays 3"],
) -> Float32[np.ndarray, " rays"]:
    """Blinn's specular term with exponent 32."""
    half = to_light - view
    cosine = np.einsum("rc,rc->r", normals, half) / np.sqrt(np.einsum("rc,rc->r", half, half))
    return np.maximum(cosine, 0) ** 32
