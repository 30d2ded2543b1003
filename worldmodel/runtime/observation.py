"""Observation of a message: camera names, pixels and size as the monitor expects them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLAT = "observation/"
"""Prefix of openpi's flat keys: "observation/wrist_image" is the camera "wrist_image"."""
MAX_NAMES = 12
"""Received keys that a message lists."""


@dataclass(frozen=True)
class CheckedFrames:
    """What the monitor judges, and what is wrong with it."""

    frames: object
    """uint8 frames of the monitor's shape; or one invalid view or observation as it came."""
    camera: str | None = None
    """Name of the invalid camera."""
    note: str | None = None
    """Sentence that says more than the monitor's own; None: the monitor's own."""


def named_observation(message: Mapping[Any, Any]) -> object:
    """The observation of a message, with openpi's flat keys "observation/NAME" as NAME.

    Flat keys are accepted in the message itself and in its "observation".

    >>> named_observation({"observation/image": 1, "prompt": "pick"})
    {'image': 1}

    Raises:
        ValueError: There is none, or a name occurs twice.
    """
    flat = {key: value for key, value in message.items() if _is_flat(key)}
    if "observation" not in message:
        if not flat:
            raise ValueError(
                'A message must be a map with the key "observation", or with keys such as '
                '"observation/image".'
            )
        return _without_prefix(flat)
    if flat:
        raise ValueError(
            f'A message must have the key "observation" or flat keys, got both: {_names(flat)}.'
        )
    observation = message["observation"]
    return _without_prefix(observation) if isinstance(observation, Mapping) else observation


def _is_flat(key: object) -> bool:
    return isinstance(key, str) and key.startswith(FLAT)


def _without_prefix(entries: Mapping[Any, Any]) -> dict[Any, Any]:
    named: dict[Any, Any] = {}
    for key, value in entries.items():
        name = key.removeprefix(FLAT) if isinstance(key, str) else key
        if name in named:
            raise ValueError(f"The observation must name {name!r} once, got it with and without "
                             f"{FLAT!r}.")  # fmt: skip
        named[name] = value
    return named


def _names(entries: Mapping[Any, Any]) -> str:
    listed = [repr(key)[:60] for key in list(entries)[:MAX_NAMES]]
    more = len(entries) - len(listed)
    return (", ".join(listed) or "nothing") + f" and {more} more" * (more > 0)


def checked_frames(
    observation: object, cameras: Sequence[str], shape: tuple[int, ...]
) -> CheckedFrames:
    """Frames of all cameras at the monitor's size.

    Args:
        observation: Camera -> frame, or an array of all views in the order of `cameras`. A frame is
            uint8, or of floats in [0, 1], which stand for 0 to 255.
        cameras: Names, in the order of the monitor's views.
        shape: Shape of the monitor's frames, [*view, height, width, 3].
    """
    views = observation
    if isinstance(views, np.ndarray):
        array = views[None] if views.ndim == 3 else views
        if array.ndim != 4 or len(array) != len(cameras):
            return CheckedFrames(observation)
        views = dict(zip(cameras, array, strict=True))
    if not isinstance(views, Mapping):
        return CheckedFrames(observation)
    valid: list[np.ndarray] = []
    for camera in cameras:
        if views.get(camera) is None:
            expected = ", ".join(map(repr, cameras))
            note = f"it is missing: expected the cameras {expected}, received {_names(views)}."
            return CheckedFrames(None, camera, note)
        view, fault = checked_view(views[camera], shape[-3:])
        if fault is not None:
            is_stack = isinstance(view, np.ndarray) and view.shape == shape
            return CheckedFrames(view[None] if is_stack else view, camera, fault)
        valid.append(view)
    return CheckedFrames(np.stack(valid).reshape(shape))


def checked_view(view: Any, shape: tuple[int, ...]) -> tuple[Any, str | None]:
    """One camera's uint8 frame of `shape`; or the view as it came, and what is wrong with it."""
    if not isinstance(view, np.ndarray):
        return view, f"there is no image: expected an array, got {type(view).__name__}."
    pixels = view
    if view.dtype.kind == "f" and view.size:
        low, high = view.min(), view.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            return view, "the image holds NaN or infinite values."
        if not 0 <= low <= high <= 1:
            return view, f"an image of floats must lie in [0, 1], got {low:g} to {high:g}."
        pixels = np.rint(255 * view.astype(np.float32)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        return view, f"the image must be uint8 or floats in [0, 1], got {view.dtype}."
    pixels = scaled(pixels, shape[:2])
    if pixels.shape != shape:
        expected = f"shape {shape} or the same proportions"
        return pixels, f"the image must have {expected}, got {view.shape}."
    return pixels, None


def scaled(frame: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a uint8 frame to (height, width); other proportions stay as they are."""
    if frame.ndim != 3 or frame.shape[-1] != 3 or not frame.size or frame.shape[:2] == size:
        return frame
    import torch  # here: the base install has none

    from worldmodel.episodes.episode import MAX_STRETCH

    height, width, _ = frame.shape
    if abs(math.log(width * size[0] / (height * size[1]))) >= MAX_STRETCH:
        return frame
    from worldmodel.networks.images import resize, to_model, to_pixels

    return to_pixels(resize(to_model(torch.from_numpy(frame)), (size[0], size[1]))).numpy()
