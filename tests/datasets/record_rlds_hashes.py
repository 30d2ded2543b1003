"""Record what TensorFlow reads from the Bridge RLDS sample, for `test_rlds.py`; needs TensorFlow.

python tests/datasets/record_rlds_hashes.py <folder of bridge_rlds/1.0.0>
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

CAMERAS = ("image_0", "image_1", "image_2")


def digest(values: np.ndarray | bytes) -> str:
    """Hash of the bytes in memory order."""
    data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def hashes(episode: dict) -> dict[str, str]:
    """Hash per camera, of actions, states, and the text of the first step."""
    steps = list(episode["steps"])
    stacked = {name: np.stack([s["observation"][name] for s in steps]) for name in CAMERAS}
    stacked["action"] = np.stack([step["action"] for step in steps])
    stacked["state"] = np.stack([step["observation"]["state"] for step in steps])
    recorded = {name: digest(values) for name, values in stacked.items()}
    return {**recorded, "text": digest(steps[0]["language_instruction"])}


def main() -> None:
    """Write rlds_hashes.json beside this script."""
    import tensorflow_datasets as tfds  # here, so that pytest can collect this file without it

    builder = tfds.builder_from_directory(sys.argv[1])
    order = tfds.ReadConfig(interleave_cycle_length=1)
    recorded = {
        f"{split}/{i:04d}": hashes(episode)
        for split in builder.info.splits
        for i, episode in enumerate(
            tfds.as_numpy(builder.as_dataset(split, shuffle_files=False, read_config=order))
        )
    }
    rows = [f'"{key}": {json.dumps(value)}' for key, value in recorded.items()]
    target = Path(__file__).with_name("rlds_hashes.json")
    target.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
