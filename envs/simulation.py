"""Physics of the tabletop: one MuJoCo model with the appearance of a domain."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float, Float32

from worldmodel.envs.arm import DOWN, Arm
from worldmodel.envs.factors import RGB, Domain
from worldmodel.envs.geometry import camera_pose, rotation_6d, yaw
from worldmodel.envs.layout import Distractor, Layout
from worldmodel.envs.scene import CAMERA_TARGET, DISTRACTORS, START_HEIGHT, scene_xml

SETTLE_STEPS = 20
HIDDEN = (0.0, 0.0, -9.0)


@dataclass(frozen=True)
class Scene:
    """Privileged state for scripted policies; metres and radians, base frame."""

    gripper: Float[np.ndarray, " 3"]
    """Commanded gripper position."""
    gripper_yaw: float
    object: Float[np.ndarray, " 3"]
    object_yaw: float
    zone: Float[np.ndarray, " 2"]


class Simulation:
    """Physics of one episode at a time."""

    def __init__(self, height: int, width: int) -> None:
        self.model = mujoco.MjModel.from_xml_string(scene_xml(height, width))
        self.data = mujoco.MjData(self.model)
        self.arm = Arm(self.model)
        self.aspect = width / height
        self._object = self.model.joint("object").qposadr[0]
        self._names = [self.model.geom(i).name for i in range(self.model.ngeom)]

    def reset(self, domain: Domain, layout: Layout, distractors: list[Distractor]) -> None:
        """Start an episode and let the object settle."""
        mujoco.mj_resetData(self.model, self.data)
        self._dress(domain, distractors)
        self.model.body("zone").pos[:2] = layout.zone
        half = layout.object_yaw / 2
        pose = [*layout.object, START_HEIGHT, np.cos(half), 0, 0, np.sin(half)]
        self.data.qpos[self._object : self._object + 7] = pose
        self.arm.reset(self.data, layout.gripper)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_step(self.model, self.data, SETTLE_STEPS)

    def dress(self, domain: Domain, distractors: list[Distractor]) -> None:
        """Change appearance and distractors between two steps, without changing the task."""
        self._dress(domain, distractors)
        mujoco.mj_camlight(self.model, self.data)
        for i in range(len(DISTRACTORS)):
            self._bring(i)

    def _dress(self, domain: Domain, distractors: list[Distractor]) -> None:
        self._dress_room(domain)
        self._dress_arm(domain)
        self._dress_object(domain)
        self._place_camera(domain)
        self._place_distractors(distractors)

    def state(self) -> Float32[np.ndarray, " 10"]:
        """Canonical state: measured pose of the gripper and its opening."""
        position, rotation = self.arm.end_effector(self.data)
        opening = np.clip(self.data.joint("left_finger").qpos / 0.04, 0, 1)
        return np.concatenate([position, rotation_6d(rotation), opening]).astype(np.float32)

    def scene(self) -> Scene:
        """Current privileged state."""
        return Scene(
            gripper=self.arm.position.copy(),
            gripper_yaw=yaw(self.arm.rotation @ DOWN.T),
            object=self.data.body("object").xpos.copy(),
            object_yaw=yaw(self.data.body("object").xmat.reshape(3, 3)),
            zone=self.model.body("zone").pos[:2].copy(),
        )

    def object_pose(self) -> Float[np.ndarray, " 7"]:
        """Position (m) and quaternion (w x y z) of the object."""
        return self.data.qpos[self._object : self._object + 7].copy()

    def object_in_image(self) -> Float[np.ndarray, " 2"]:
        """Place of the object's centre in the image, as fractions of its width and height."""
        rotation = self.data.cam_xmat[0].reshape(3, 3)  # columns: right, up, backwards
        right, up, back = (self.data.body("object").xpos - self.data.cam_xpos[0]) @ rotation
        scale = -0.5 / (back * np.tan(np.deg2rad(self.model.cam_fovy[0]) / 2))
        return 0.5 + scale * np.array([right / self.aspect, -up])

    def _paint(self, geom: str, rgb: RGB, visible: bool = True) -> None:
        self.model.geom(geom).rgba = [*rgb, float(visible)]

    def _dress_room(self, domain: Domain) -> None:
        model = self.model
        self._paint("table", domain.table_rgb)
        self._paint("wall", domain.wall_rgb)
        model.geom("table").matid = model.material(domain.table_pattern).id
        model.geom("wall").matid = model.material(domain.wall_pattern).id
        toward_table = np.array([0.28, 0, 0]) - domain.light_pos
        model.light_pos[0] = domain.light_pos
        model.light_dir[0] = toward_table / np.linalg.norm(toward_table)
        model.light_diffuse[0] = domain.light_rgb
        model.light_ambient[0] = 0
        model.light_specular[0] = 0.15
        headlight = model.vis.headlight
        headlight.ambient[:], headlight.diffuse[:], headlight.specular[:] = domain.ambient, 0, 0

    def _dress_arm(self, domain: Domain) -> None:
        for name in self._names:
            kind = name.split("_")[0]
            if kind in ("arm", "sleeve"):
                self._paint(name, domain.arm_rgb, kind == "arm" or domain.sleeves)
            elif kind in ("left", "right", "cover"):
                self._paint(name, domain.finger_rgb, kind != "cover" or domain.sleeves)
        self._paint("tool", domain.finger_rgb, domain.tool)

    def _dress_object(self, domain: Domain) -> None:
        for i, name in enumerate(self._names):
            if name.startswith("object_"):
                chosen = name.split("_")[1] == domain.object_shape
                self._paint(name, domain.object_rgb, chosen)
                self.model.geom_contype[i] = self.model.geom_conaffinity[i] = int(chosen)

    def _place_camera(self, domain: Domain) -> None:
        position, rotation = camera_pose(
            np.array(CAMERA_TARGET),
            domain.camera_distance,
            domain.camera_azimuth_deg,
            domain.camera_elevation_deg,
            domain.camera_roll_deg,
        )
        self.model.cam_pos[0] = position
        mujoco.mju_mat2Quat(self.model.cam_quat[0], rotation.reshape(9))

    def _place_distractors(self, distractors: list[Distractor]) -> None:
        for i in range(len(DISTRACTORS)):
            self.model.body(f"distractor{i}").pos = HIDDEN
            self._paint(f"distractor{i}", (0.0, 0.0, 0.0), visible=False)
            self.model.geom(f"distractor{i}").contype = 1
            self.model.geom(f"distractor{i}").conaffinity = 1
        for distractor in distractors:
            self._place_distractor(distractor)

    def show(self, distractor: Distractor) -> None:
        """Show a distractor without collisions until the next reset."""
        geom = self.model.geom(f"distractor{distractor.index}")
        geom.contype = geom.conaffinity = 0
        self._place_distractor(distractor)
        self._bring(distractor.index)

    def _bring(self, index: int) -> None:
        """Update the world position of a distractor.

        mj_kinematics would also move the other bodies forward by a step.
        """
        geom = self.model.geom(f"distractor{index}")
        body = self.data.body(geom.bodyid[0])
        for place in (body.xpos, body.xipos, self.data.geom(geom.id).xpos):
            place[:] = self.model.body(body.id).pos

    def distractor_positions(self) -> list[Float[np.ndarray, " 2"]]:
        """Positions of the visible distractors (m)."""
        bodies = (self.model.body(f"distractor{i}").pos for i in range(len(DISTRACTORS)))
        return [pos[:2].copy() for pos in bodies if pos[2] > 0]

    def _place_distractor(self, distractor: Distractor) -> None:
        name = f"distractor{distractor.index}"
        height = self._half_height(self.model.geom(name).id)
        self.model.body(name).pos = [*distractor.position, height]
        self._paint(name, distractor.rgb)

    def _half_height(self, geom: int) -> float:
        kind, size = self.model.geom_type[geom], self.model.geom_size[geom]
        if kind == mujoco.mjtGeom.mjGEOM_CYLINDER:
            return float(size[1])
        if kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
            return float(size[0] + size[1])
        return float(size[0] if kind == mujoco.mjtGeom.mjGEOM_SPHERE else size[2])
