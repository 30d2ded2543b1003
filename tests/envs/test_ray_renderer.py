"""Pixels of the ray renderer: where things are, which colour they have, what is in shadow."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from worldmodel.envs.factors import Domain
from worldmodel.envs.ray_renderer import edge_mask, pattern_mask, pinhole_directions
from worldmodel.envs.simulation import Simulation
from worldmodel.envs.tabletop import TabletopEnv


def pixel_of(simulation: Simulation, point: np.ndarray) -> tuple[int, int]:
    """Row and column of a point of the world in a picture of 64 x 64, by the pinhole equation."""
    data = simulation.data
    x, y, z = data.cam_xmat[0].reshape(3, 3).T @ (point - data.cam_xpos[0])
    focal = 32 / np.tan(np.deg2rad(45 / 2))
    return round(31.5 + focal * y / z), round(31.5 - focal * x / z)


def picture(env: TabletopEnv, seed: int, domain: Domain) -> np.ndarray:
    return env.reset(seed=seed, options={"domain": domain})[0]["image"].astype(int)


def test_pinhole_directions_of_two_by_two_pixels() -> None:
    rays = pinhole_directions(2, 2, 90.0, 1)
    expected = np.array([[-0.5, 0.5, -1], [0.5, 0.5, -1], [-0.5, -0.5, -1], [0.5, -0.5, -1]])
    assert rays == pytest.approx(expected / np.sqrt(1.5))


def test_the_four_rays_of_a_pixel_surround_its_centre() -> None:
    fine = pinhole_directions(3, 5, 60.0, 2).reshape(-1, 4, 3)
    fine = fine / -fine[..., 2:]
    coarse = pinhole_directions(3, 5, 60.0, 1)
    assert fine.mean(1) == pytest.approx(coarse / -coarse[:, 2:])


def test_edge_mask_marks_both_sides_of_a_step() -> None:
    image = np.zeros((3, 5, 3), np.float32)
    image[:, 3:, 2] = 0.1
    assert edge_mask(image).tolist() == [[False, False, True, True, False]] * 3
    assert edge_mask(image.transpose(1, 0, 2)).T.tolist() == edge_mask(image).tolist()
    assert not edge_mask(image / 2).any()


def test_checker_alternates() -> None:
    places = np.array([0.04, 0.12, 0.2], np.float32)
    assert pattern_mask("checker", places, np.full(3, 0.04, np.float32)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("seed", range(6))
def test_block_and_zone_have_their_colour_where_they_are(
    tabletop: Callable[[str], TabletopEnv], seed: int
) -> None:
    env = tabletop("pick_place")
    image = picture(env, seed, Domain(num_distractors=0, light_pos=(0.55, 0.0, 1.5)))
    scene = env.simulation.scene()
    red, green, blue = image[pixel_of(env.simulation, scene.object)]
    assert red > 2 * max(green, blue)
    red, green, blue = image[pixel_of(env.simulation, np.append(scene.zone, 0.003))]
    assert green > 1.5 * max(red, blue)


def test_block_is_large_enough_to_matter(tabletop: Callable[[str], TabletopEnv]) -> None:
    for seed in range(6):
        image = picture(tabletop("pick_place"), seed, Domain(num_distractors=0))
        red = (image[..., 0] > 100) & (image[..., 0] > 2.5 * image[..., 1])
        red |= (image[..., 0] > 60) & (image[..., 0] > 5 * image[..., 1])
        assert 7 <= np.ptp(np.flatnonzero(red.any(0))) + 1 <= 13


def test_brightness_and_contrast_of_the_nominal_picture(
    tabletop: Callable[[str], TabletopEnv],
) -> None:
    images = [tabletop("pick_place").reset(seed=seed)[0]["image"] for seed in range(8)]
    assert np.mean(images) == pytest.approx(118, abs=8)
    assert np.std(images) == pytest.approx(47, abs=6)


def test_a_lamp_below_the_table_leaves_ambient_light_and_one_above_casts_a_shadow(
    tabletop: Callable[[str], TabletopEnv],
) -> None:
    env = tabletop("pick_place")
    plain = Domain(num_distractors=0, table_pattern="flat", light_pos=(0.35, 0.0, 1.5))
    image = picture(env, 0, plain)
    dark = picture(env, 0, replace(plain, light_pos=(0.35, 0.0, -1.5)))
    ambient = np.array(plain.table_rgb) * plain.ambient * 255
    assert dark[60, 4] == pytest.approx(ambient, abs=1)
    gripper = env.simulation.scene().gripper
    lamp = np.array(plain.light_pos)
    below = gripper + (gripper - lamp) * gripper[2] / (lamp[2] - gripper[2])
    lit = image[60, 4].sum()
    window = image[tuple(slice(i - 3, i + 4) for i in pixel_of(env.simulation, below))].sum(-1)
    assert (window < 0.75 * lit).any()


def test_a_camera_that_moves_right_moves_the_block_left(
    tabletop: Callable[[str], TabletopEnv],
) -> None:
    env = tabletop("pick_place")

    def column(azimuth: float) -> int:
        image = picture(env, 0, Domain(num_distractors=0, camera_azimuth_deg=azimuth))
        where = pixel_of(env.simulation, env.simulation.scene().object)
        red, green, _ = image[where]
        assert red > 2 * green
        return where[1]

    assert column(-20.0) != column(0.0) != column(20.0)


def test_every_factor_changes_the_picture(tabletop: Callable[[str], TabletopEnv]) -> None:
    env = tabletop("pick_place")
    for seed in range(3):
        nominal = env.reset(seed=seed)[0]["image"].astype(int)
        for factor in ("background", "lighting", "clutter", "object", "end_effector", "camera"):
            options = {"factor": factor, "severity": 3}
            shifted = env.reset(seed=seed, options=options)[0]["image"].astype(int)
            changed = (np.abs(shifted - nominal).max(-1) > 12).mean()
            assert changed > {"background": 0.5, "lighting": 0.5, "camera": 0.3}.get(factor, 0.005)
