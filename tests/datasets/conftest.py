"""Small files of each form, so that tests can break them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import google_crc32c
import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import simplejpeg

from worldmodel.datasets.actions import CANONICAL
from worldmodel.datasets.trajectory import ArrayFrames, Trajectory


def gradients(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth frames, each brighter than the one before, so that a frame shows its number."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([2 * y, x, (x + y) // 2], axis=-1)
    steps = 3 * np.arange(num_frames)[:, None, None, None]
    return np.clip(base + steps, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def write_mp4() -> Callable[..., np.ndarray]:
    """Write frames as H.264 with B-frames and few key frames; returns the frames."""

    def write(
        path: Path, num_frames: int, *, rate: int = 20, faststart: bool = False
    ) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = gradients(num_frames)
        options = {"movflags": "faststart"} if faststart else {}
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=rate, options={"bf": "2", "g": "30"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return frames

    return write


def random_poses(num_frames: int, seed: int = 0) -> np.ndarray:
    """Smooth absolute poses [time, 7] whose roll crosses ±π, as the DROID arm's does."""
    generator = np.random.default_rng(seed)
    poses = np.cumsum(generator.normal(0, 0.02, (num_frames, 7)), axis=0)
    poses[:, 3] = np.angle(np.exp(1j * (poses[:, 3] + np.pi)))
    poses[:, 6] = np.linspace(0, 0.9, num_frames)
    return poses.astype(np.float32).astype(np.float64)


@pytest.fixture(scope="session")
def poses() -> np.ndarray:
    return random_poses(12)


@pytest.fixture
def droid_folder(tmp_path: Path, write_mp4: Callable[..., np.ndarray], poses: np.ndarray) -> Path:
    """One annotation with three videos of 12 frames."""
    root = tmp_path / "droid"
    videos = [f"videos/train/0/{i}.mp4" for i in range(3)]
    for video in videos:
        write_mp4(root / video, 12)
    annotation = {
        "texts": ["lift the cup"],
        "success": 1,
        "video_length": 12,
        "videos": [{"video_path": video} for video in videos],
        "states": poses.tolist(),
        "action.gripper_position": [0.0] * 35,
    }
    file = root / "annotation/train/0.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(annotation))
    return root


@pytest.fixture
def worldgym_folder(tmp_path: Path, write_mp4: Callable[..., np.ndarray]) -> Path:
    """One mp4 of 6 frames and its scaled actions, the first row zero."""
    root = tmp_path / "worldgym"
    write_mp4(root / "train/000000000.mp4", 6)
    actions = np.zeros((6, 10), np.float32)
    actions[1:, :7] = [0.35, -0.7, 0.0, 0.0, 0.0, 0.56, -1.0]
    actions[0, 6] = -1
    np.savez(root / "train/000000000.npz", arr_0=actions)
    return root


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def encode_example(features: dict[str, Any]) -> bytes:
    """A serialised `tf.train.Example`, written from the format's description."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            feature = _field(1, b"".join(_field(1, value) for value in values))
        elif values.dtype == np.float32:
            feature = _field(2, _field(1, values.astype("<f4").tobytes()))
        else:
            numbers = b"".join(_varint(int(value) % 2**64) for value in values.ravel())
            feature = _field(3, _field(1, numbers))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def frame_record(payload: bytes) -> bytes:
    """A TFRecord around a payload, written from the format's description."""

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(payload))
    return length + masked(length) + payload + masked(payload)


@pytest.fixture(scope="session")
def encode() -> Callable[[dict[str, Any]], bytes]:
    return encode_example


@pytest.fixture(scope="session")
def framed() -> Callable[[bytes], bytes]:
    return frame_record


@pytest.fixture(scope="session")
def rlds_features() -> dict[str, Any]:
    """The features of one record: 4 steps, one lit and one black camera."""
    generator = np.random.default_rng(0)
    lit = [simplejpeg.encode_jpeg(frame, quality=95) for frame in gradients(4)]
    black = [simplejpeg.encode_jpeg(np.zeros((32, 48, 3), np.uint8)) for _ in range(4)]
    actions = generator.normal(0, 0.02, (4, 7)).astype(np.float32)
    actions[:, 6] = 1
    actions[0, :6] = 1e-7
    return {
        "steps/action": actions,
        "steps/observation/state": random_poses(4).astype(np.float32),
        "steps/language_instruction": [b"open the drawer"] * 4,
        "steps/observation/image_0": lit,
        "steps/observation/image_3": black,
        "steps/is_first": np.array([1, 0, 0, 0]),
    }


def _tensor(shape: list[str], dtype: str) -> dict[str, Any]:
    return {
        "pythonClassName": "x.Tensor",
        "tensor": {"shape": {"dimensions": shape}, "dtype": dtype},
    }


def _nested(**features: Any) -> dict[str, Any]:
    return {"pythonClassName": "x.FeaturesDict", "featuresDict": {"features": features}}


@pytest.fixture
def rlds_folder(tmp_path: Path, rlds_features: dict[str, Any]) -> Path:
    """Two episodes in one shard of a split."""
    root = tmp_path / "rlds"
    root.mkdir()
    image = {"pythonClassName": "x.Image"}
    step = _nested(
        action=_tensor(["7"], "float32"),
        observation=_nested(state=_tensor(["7"], "float32"), image_0=image, image_3=image),
        language_instruction={"pythonClassName": "x.Text"},
        is_first=_tensor([], "bool"),
    )
    features = _nested(steps={"pythonClassName": "x.Dataset", "sequence": {"feature": step}})
    splits = [{"name": "train", "shardLengths": ["2"]}]
    info = {"name": "bridge_test", "splits": splits}
    (root / "features.json").write_text(json.dumps(features))
    (root / "dataset_info.json").write_text(json.dumps(info))
    shard = root / "bridge_test-train.tfrecord-00000-of-00001"
    shard.write_bytes(frame_record(encode_example(rlds_features)) * 2)
    return root


@pytest.fixture
def make_trajectory() -> Callable[..., Trajectory]:
    """An episode of 12 frames, two cameras of different size; any field can be replaced."""

    def make(episode_id: str, *, seed: int = 0, **changes: Any) -> Trajectory:
        generator = np.random.default_rng(seed)
        fields: dict[str, Any] = {
            "source": "made up",
            "frames": {
                "front": ArrayFrames(gradients(12, 64, 96)),
                "wrist": ArrayFrames(gradients(12, 16, 24)[::-1]),
            },
            "actions": generator.normal(0, 0.02, (12, 7)).astype(np.float32),
            "action_valid": np.arange(12) < 11,
            "states": generator.normal(size=(12, 10)).astype(np.float32),
            "action_spec": CANONICAL,
            "instruction": "lift",
            "rate_hz": 5.0,
            "success": None,
            "signals": {"done": np.arange(12) > 9, "raw/pose": generator.normal(size=(36, 6))},
        }
        return Trajectory(episode_id=episode_id, **(fields | changes))

    return make


def lerobot_rows(num_frames: int, poses: np.ndarray) -> dict[str, Any]:
    """States, the states that follow them as actions, and times at 5 Hz."""
    states = poses[:num_frames].astype(np.float32)
    following = np.concatenate([states[1:], states[-1:]])
    return {
        "observation.state": list(states),
        "action": list(following),
        "timestamp": np.arange(num_frames, dtype=np.float32) / 5,
    }


@pytest.fixture
def lerobot_folder(tmp_path: Path, poses: np.ndarray, write_mp4: Callable[..., np.ndarray]) -> Path:
    """Two episodes of 12 and 8 frames that share one table and one video."""
    root = tmp_path / "lerobot"
    both = [
        {**lerobot_rows(n, poses), "episode_index": np.full(n, i)} for i, n in enumerate((12, 8))
    ]
    table = {key: [x for episode in both for x in episode[key]] for key in both[0]}
    write_table(root / "data/chunk-000/file-000.parquet", table)
    write_mp4(root / "videos/observation.images.wrist/chunk-000/file-000.mp4", 20, rate=5)
    episodes = {
        "episode_index": [0, 1],
        "tasks": [["stack"], []],
        "length": [12, 8],
        "data/chunk_index": [0, 0],
        "data/file_index": [0, 0],
        "videos/observation.images.wrist/chunk_index": [0, 0],
        "videos/observation.images.wrist/file_index": [0, 0],
        "videos/observation.images.wrist/from_timestamp": [0.0, 2.4],
        "videos/observation.images.wrist/to_timestamp": [2.4, 4.0],
    }
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper_closed"]
    vector = {"dtype": "float32", "shape": [7], "names": names}
    info = {
        "codebase_version": "v3.0",
        "fps": 5,
        "total_episodes": 2,
        "splits": {"train": "0:1", "val": "1:2"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.images.wrist": {"dtype": "video"},
            "observation.state": vector,
            "action": vector,
            "timestamp": {"dtype": "float32", "shape": [1]},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def write_table(file: Path, columns: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


@pytest.fixture
def lerobot_v2_folder(lerobot_folder: Path, write_mp4: Callable[..., np.ndarray]) -> Path:
    """The second episode of the LeRobot folder, of 8 frames, as version 2.1 stores it."""
    root = lerobot_folder.with_name("lerobot_v2")
    info = json.loads((lerobot_folder / "meta/info.json").read_text())
    info |= {
        "codebase_version": "v2.1",
        "total_episodes": 1,
        "chunks_size": 1000,
        "splits": {"train": "0:1"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{episode_chunk}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    table = {**lerobot_rows(8, random_poses(8)), "episode_index": np.zeros(8, np.int64)}
    write_table(root / "data/chunk-000/episode_000000.parquet", table)
    write_mp4(root / "videos/0/observation.images.wrist/episode_000000.mp4", 8, rate=5)
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    row = {"episode_index": 0, "tasks": ["stack"], "length": 8}
    (root / "meta/episodes.jsonl").write_text(json.dumps(row) + "\n")
    return root


@pytest.fixture
def irasim_folder(tmp_path: Path, write_mp4: Callable[..., np.ndarray], poses: np.ndarray) -> Path:
    """One Bridge episode of 12 frames, as IRASim stores it."""
    root = tmp_path / "irasim"
    write_mp4(root / "videos/train/0/rgb.mp4", 12)
    annotation = {
        "texts": ["lift the cup"],
        "videos": [{"video_path": "videos/train/0/rgb.mp4"}],
        "state": poses[:, :6].tolist(),
        "continuous_gripper_state": poses[:, 6].tolist(),
        "action": np.zeros((11, 7)).tolist(),
    }
    file = root / "annotation/train/0.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(annotation))
    return root


@pytest.fixture
def droid_raw_folder(
    tmp_path: Path, write_mp4: Callable[..., np.ndarray], poses: np.ndarray
) -> Path:
    """A success and a failure of 12 frames each, as DROID was recorded."""
    root = tmp_path / "droid_raw"
    for outcome in ("success", "failure"):
        run = root / outcome / "2024-01-01" / "run0"
        write_mp4(run / "recordings/MP4/1.mp4", 12, rate=15)
        metadata = {"wrist_cam_serial": "1", "current_task": "lift"}
        (run / "metadata_a.json").write_text(json.dumps(metadata))
        with h5py.File(run / "trajectory.h5", "w") as file:
            file["observation/robot_state/cartesian_position"] = poses[:, :6]
            file["observation/robot_state/gripper_position"] = poses[:, 6]
            file["action/cartesian_position"] = poses[:, :6]
    return root
