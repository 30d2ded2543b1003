"""Lazy frames: any window equals the same stretch of the whole, and damage is an error."""

import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg

from worldmodel.datasets.video import JpegFrames, VideoFrames, contiguous, count_frames

NUM_FRAMES = 70
"""Over two key-frame intervals of 30."""


@pytest.fixture(scope="module")
def video(
    tmp_path_factory: pytest.TempPathFactory, write_mp4: Callable[..., np.ndarray]
) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    return path, write_mp4(path, NUM_FRAMES)


def whole(path: Path) -> np.ndarray:
    """Every frame, decoded in order by PyAV's own example."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_come_in_the_order_they_were_written(video: tuple[Path, np.ndarray]) -> None:
    path, written = video
    brightness = VideoFrames(path, NUM_FRAMES)[:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, written.mean(axis=(1, 2, 3)), atol=3)


@pytest.mark.parametrize("start", [0, 1, 16, 17, 29, 31, 46, 60, 69])
def test_a_window_equals_the_same_stretch_of_the_whole(
    video: tuple[Path, np.ndarray], start: int
) -> None:
    path, _ = video
    frames, intact = VideoFrames(path, NUM_FRAMES), whole(path)
    for length in (1, 5, 40):
        window = slice(start, start + length)
        np.testing.assert_array_equal(frames[window], intact[window])


def test_an_episode_inside_a_longer_video_counts_from_its_own_start(
    video: tuple[Path, np.ndarray],
) -> None:
    path, _ = video
    frames = VideoFrames(path, 20, first=40)
    np.testing.assert_array_equal(frames[3:500], whole(path)[43:60])


def test_no_frame_is_decoded_for_length_and_size(video: tuple[Path, np.ndarray]) -> None:
    path, _ = video
    frames = VideoFrames(path, NUM_FRAMES)
    assert (len(frames), frames.size) == (NUM_FRAMES, (32, 48))
    assert frames[5:5].shape == (0, 32, 48, 3)


@pytest.mark.parametrize("window", [slice(-3, None), slice(2, 99), slice(4, 2), slice(None)])
def test_windows_are_clipped_as_slices_are(window: slice) -> None:
    assert list(range(*contiguous(window, 7))) == list(range(7))[window]


def test_windows_are_contiguous() -> None:
    with pytest.raises(
        ValueError, match=re.escape("`window` must be contiguous (step 1), got step 2.")
    ):
        contiguous(slice(0, 4, 2), 7)


def test_the_count_is_of_packets_not_of_the_header(
    tmp_path: Path, write_mp4: Callable[..., np.ndarray]
) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, 50, faststart=True)
    assert count_frames(path) == 50
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 50
    assert count_frames(path) < 50


def test_a_video_cut_short_is_refused_where_it_ends(
    tmp_path: Path, write_mp4: Callable[..., np.ndarray]
) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, 50, faststart=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames = VideoFrames(path, 50)
    assert frames[:5].shape == (5, 32, 48, 3)
    with pytest.raises(ValueError, match=r"clip\.mp4 .*truncated"):
        frames[:]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7])
def test_a_truncated_mp4_is_one_sentence(
    tmp_path: Path, write_mp4: Callable[..., np.ndarray], share: float
) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, 20)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for use in (
        count_frames,
        lambda file: VideoFrames(file, 20)[:],
        lambda f: VideoFrames(f, 20).size,
    ):
        with pytest.raises(ValueError, match=r"clip\.mp4 is not a readable video .*\.$") as caught:
            use(path)
        assert "\n" not in str(caught.value)


def test_a_video_cut_anywhere_is_whole_or_refused(
    tmp_path: Path, write_mp4: Callable[..., np.ndarray]
) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, 20)
    content, intact = path.read_bytes(), whole(path)
    for length in range(0, len(content), 40):
        path.write_bytes(content[:length])
        try:
            frames = VideoFrames(path, 20)[:]
        except ValueError:
            continue
        np.testing.assert_array_equal(frames, intact)


def test_damaged_pictures_are_an_error_not_grey_patches(
    tmp_path: Path, write_mp4: Callable[..., np.ndarray]
) -> None:
    path = tmp_path / "clip.mp4"
    write_mp4(path, 60)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 1200
    content[start : start + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        VideoFrames(path, 60)[:]


@pytest.mark.parametrize("name", ["text.mp4", "missing.mp4"])
def test_what_is_no_video_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    with pytest.raises(ValueError, match=f"{name} is not a readable video"):
        count_frames(tmp_path / name)


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4 holds no video stream\."):
        count_frames(path)


def test_real_videos_seek_to_the_frame_they_are_asked_for(real_data: Path) -> None:
    path = real_data / "droid/videos/val/18599/2.mp4"
    frames = VideoFrames(path, 72)
    np.testing.assert_array_equal(frames[50:60], whole(path)[50:60])


def test_jpeg_frames_are_decoded_one_by_one() -> None:
    images = np.stack([np.full((16, 24, 3), 40 * i, np.uint8) for i in range(5)])
    frames = JpegFrames(tuple(simplejpeg.encode_jpeg(image, quality=100) for image in images))
    assert (len(frames), frames.size) == (5, (16, 24))
    np.testing.assert_array_equal(frames[1:4], images[1:4])
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(frames.jpeg(3)), images[3])
    assert frames[2:2].shape == (0, 16, 24, 3)


def test_a_broken_jpeg_is_named() -> None:
    good = simplejpeg.encode_jpeg(np.zeros((16, 24, 3), np.uint8))
    frames = JpegFrames((good, b"no image"), where="shard 0")
    with pytest.raises(ValueError, match=r"shard 0: frame 1 is no JPEG image"):
        frames[:]
