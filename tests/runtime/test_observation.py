"""Observations as robots send them: flat keys, floats, wrong names and wrong shapes."""

import numpy as np
import pytest

from worldmodel.runtime.observation import checked_frames, checked_view, named_observation

SHAPE = (2, 4, 4, 3)
CAMERAS = ("image", "wrist_image")
RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (4, 4, 3)).astype(np.uint8)


def test_flat_keys_name_the_cameras() -> None:
    libero = {"observation/image": 1, "observation/wrist_image": 2, "observation/state": 3}
    named = {"image": 1, "wrist_image": 2, "state": 3}
    assert named_observation({**libero, "prompt": "pick", "action": None}) == named
    inside = named_observation({"observation": {**libero, "prompt": "pick"}})
    assert inside == {**named, "prompt": "pick"}
    assert named_observation({"observation": {"front": 1}}) == {"front": 1}
    assert named_observation({"observation": FRAME}) is FRAME


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({}, 'the key "observation", or with keys such as "observation/image"'),
        ({"obs/image": 1}, 'the key "observation", or with keys such as "observation/image"'),
        ({"observation": {}, "observation/image": 1}, "got both: 'observation/image'"),
        ({"observation": {"image": 1, "observation/image": 1}}, "must name 'image' once"),
    ],
)
def test_ambiguous_keys_are_refused(message: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        named_observation(message)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_the_pixels_that_they_were_made_of(dtype: type) -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    view, note = checked_view((every / 255).astype(dtype), (16, 16, 3))
    assert note is None
    np.testing.assert_array_equal(view, every, strict=True)


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (np.full((4, 4, 3), 255.0), r"must lie in \[0, 1\], got 255 to 255"),
        (np.full((4, 4, 3), 1.0001), r"must lie in \[0, 1\], got 1.0001"),
        (np.linspace(-1, 1, 48).reshape(4, 4, 3), r"must lie in \[0, 1\], got -1 to 1"),
        (np.full((4, 4, 3), np.nan), "NaN or infinite"),
        (np.full((4, 4, 3), np.inf), "NaN or infinite"),
        (np.full((4, 4, 3), 6e4, np.float16), r"must lie in \[0, 1\], got 60000"),
        (np.zeros((4, 4, 3), np.int64), r"uint8 or floats in \[0, 1\], got int64"),
        (np.zeros((4, 4, 3), bool), r"uint8 or floats in \[0, 1\], got bool"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4, 3\) or the same proportions, got \(4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), r"shape \(4, 4, 3\) .*, got \(3, 4, 4\)"),
        (np.zeros((3, 4, 4), np.float32), r"shape \(4, 4, 3\) .*, got \(3, 4, 4\)"),
        (np.zeros((480, 640, 3), np.uint8), r"shape \(4, 4, 3\) .*, got \(480, 640, 3\)"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 3\) .*, got \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(4, 4, 3\) .*, got \(0, 4, 3\)"),
        (np.zeros((0, 4, 3), np.float32), "got float32"),
        (FRAME.tolist(), "expected an array, got list"),
        ("x", "expected an array, got str"),
    ],
)
def test_a_wrong_image_is_described(view: object, text: str) -> None:
    shown = checked_frames({"image": FRAME, "wrist_image": view}, CAMERAS, SHAPE)
    assert shown.camera == "wrist_image"
    assert shown.note is not None
    with pytest.raises(ValueError, match=text):
        raise ValueError(shown.note)


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    shown = checked_frames({"image": FRAME, "wrist\x1b": FRAME, "state": 1}, CAMERAS, SHAPE)
    assert (shown.camera, shown.frames) == ("wrist_image", None)
    assert shown.note == (
        "it is missing: expected the cameras 'image', 'wrist_image', "
        "received 'image', 'wrist\\x1b', 'state'."
    )
    many = checked_frames({f"camera{n}" * 100: 1 for n in range(30)}, CAMERAS, SHAPE)
    assert many.note is not None
    assert len(many.note) < 1000
    assert many.note.endswith("and 18 more.")


def test_valid_views_are_stacked_and_scaled() -> None:
    shown = checked_frames({"wrist_image": FRAME / 255, "image": FRAME}, CAMERAS, SHAPE)
    np.testing.assert_array_equal(shown.frames, np.stack([FRAME, FRAME]), strict=True)
    large = FRAME.repeat(3, axis=0).repeat(3, axis=1)
    shown = checked_frames(np.stack([large, large]), CAMERAS, SHAPE)
    assert isinstance(shown.frames, np.ndarray)
    assert (shown.frames.shape, shown.frames.dtype) == (SHAPE, np.uint8)


def test_a_stack_is_no_view() -> None:
    """One camera's entry holds all views: the monitor must not take it for a valid frame."""
    stack = np.stack([FRAME, FRAME])
    shown = checked_frames({"image": stack, "wrist_image": FRAME}, CAMERAS, SHAPE)
    assert shown.camera == "image"
    assert np.shape(shown.frames) != SHAPE
