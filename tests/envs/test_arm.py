"""The arm follows its commands: positions in metres, rotations in radians, base frame."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldmodel.envs.arm import Arm
from worldmodel.envs.simulation import Simulation
from worldmodel.envs.tabletop import TabletopEnv


@pytest.fixture
def simulation(tabletop: Callable[[str], TabletopEnv]) -> Simulation:
    env = tabletop("pick_place")
    env.reset(seed=0)
    return env.simulation


def move(simulation: Simulation, action: list[float], steps: int = 1) -> None:
    for _ in range(steps):
        simulation.arm.step(simulation.data, np.array(action))


def pose(simulation: Simulation) -> tuple[np.ndarray, np.ndarray]:
    return simulation.arm.end_effector(simulation.data)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_displacements_are_metres_along_the_base_axes(simulation: Simulation, axis: int) -> None:
    before = pose(simulation)[0]
    action = np.zeros(7)
    action[axis], action[6] = 0.02, 1
    move(simulation, action.tolist(), steps=2)
    move(simulation, [0, 0, 0, 0, 0, 0, 1.0], steps=2)
    expected = before + 0.04 * np.eye(3)[axis]
    assert pose(simulation)[0] == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("vector", [[0, 0, 0.3], [0.2, 0, 0], [0, -0.2, 0], [0.1, 0.1, -0.2]])
def test_rotations_are_rotation_vectors_in_the_base_frame(
    simulation: Simulation, vector: list[float]
) -> None:
    before = pose(simulation)[1]
    move(simulation, [0, 0, 0, *vector, 1.0])
    move(simulation, [0, 0, 0, 0, 0, 0, 1.0], steps=2)
    turned = Rotation.from_matrix(pose(simulation)[1] @ before.T).as_rotvec()
    assert turned == pytest.approx(np.array(vector), abs=0.02)


def test_gripper_that_points_down_has_the_identity_rotation(simulation: Simulation) -> None:
    assert pose(simulation)[1] == pytest.approx(np.eye(3), abs=0.01)


def test_one_opens_the_gripper_and_zero_closes_it(simulation: Simulation) -> None:
    move(simulation, [0, 0, 0, 0, 0, 0, 0.0], steps=3)
    assert simulation.state()[9] == pytest.approx(0.1, abs=0.02)  # fingers meet at 4 mm
    move(simulation, [0, 0, 0, 0, 0, 0, 1.0], steps=3)
    assert simulation.state()[9] == pytest.approx(1, abs=0.02)


def test_commands_stay_inside_the_workspace(simulation: Simulation) -> None:
    move(simulation, [0.12, 0.12, -0.12, 0, 0, 0, 1.0], steps=10)
    assert simulation.arm.position == pytest.approx([0.46, 0.32, 0.012])


def test_inverse_kinematics_reaches_the_command(simulation: Simulation) -> None:
    arm = Arm(simulation.model)
    for target in ([0.2, -0.13, 0.02], [0.34, 0.13, 0.02], [0.3, 0.0, 0.2]):
        arm.reset(simulation.data, np.array(target))
        simulation.data.qvel[:] = 0
        move(simulation, [0, 0, 0, 0, 0, 0, 1.0])
        simulation.arm = arm
        move(simulation, [0, 0, 0, 0, 0, 0, 1.0], steps=5)
        assert pose(simulation)[0] == pytest.approx(np.array(target), abs=0.002)
