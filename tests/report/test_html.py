"""The report page as a browser, a screen reader and a video player see it."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text as Words

from worldmodel.evaluation.statistics import wilson_interval
from worldmodel.monitors.reliability.measures import ReliabilityBins
from worldmodel.report import figures as report_figures
from worldmodel.report.html import Figure, Section, Table, Text, Video, write_report


def video_frames(seed: int, *, time: int = 6, size: tuple[int, int] = (16, 12)) -> np.ndarray:
    """A few frames of coloured blocks."""
    colors = np.random.default_rng(seed).integers(0, 256, (time, 2, 2, 3), np.uint8)
    return colors.repeat(size[0] // 2, axis=1).repeat(size[1] // 2, axis=2)


def drawing() -> Drawing:
    coverage = np.linspace(0, 1, 5)
    return report_figures.lines({"model": (coverage, coverage**2)}, x_label="x", y_label="y")


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> str:
    sections = [
        Section("Words & <numbers>", [Text("a < b & c"), table()]),
        Section(
            "Pictures",
            [
                Figure(drawing=drawing(), alt='A "curve".', caption="Risk."),
                Video(
                    panels={"true": video_frames(0), "imagined": video_frames(1)},
                    rate_hz=5.0,
                    caption="One.",
                ),
            ],
        ),
    ]
    return write_report(tmp_path / "new" / "report.html", "A <report>", sections).read_text()


def table() -> Table:
    return Table(
        caption="Success.",
        columns=["policy", "n", "rate", "gated"],
        rows=[["expert <b>", 20, 0.95, None], ["random", 20, "0 of 20", 0.0]],
    )


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    for tag, attributes in Elements(page).found:
        for name in ("src", "href", "srcset", "poster", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
    without_data = re.sub(r"data:[a-z/4+;]+base64,[\w+/=]+", "", page)
    assert not re.search(r"@import|url\(|fetch\(|//", without_data)
    assert not Elements(page).all("link")


def test_words_are_shown_as_written(page: str) -> None:
    assert "<p>a &lt; b &amp; c</p>" in page
    assert "<h2>Words &amp; &lt;numbers&gt;</h2>" in page
    assert "<title>A &lt;report&gt;</title>" in page
    assert "expert &lt;b&gt;" in page


def test_links_lead_to_the_sections(page: str) -> None:
    elements = Elements(page)
    targets = [f"#{section['id']}" for section in elements.all("section")]
    assert [link["href"] for link in elements.all("a")] == targets
    assert len(targets) == 2


def test_everything_has_words_for_those_who_cannot_see_it(page: str) -> None:
    elements = Elements(page)
    assert [image["alt"] for image in elements.all("img")] == ['A "curve".']
    assert [video["aria-label"] for video in elements.all("video")] == ["true, imagined: One."]
    scopes = [heading["scope"] for heading in elements.all("th")]
    assert scopes == ["col"] * 4 + ["row"] * 2
    assert elements.all("html") == [{"lang": "en"}]


def test_videos_play_by_themselves_and_can_be_paused(page: str) -> None:
    (video,) = Elements(page).all("video")
    assert {"autoplay", "loop", "muted", "playsinline"} <= set(video)
    assert [button["id"] for button in Elements(page).all("button")] == ["pause"]


def test_a_page_without_videos_has_no_script(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", "t", [Section("s", [table()])]).read_text()
    assert not Elements(page).all("script")


def test_table_formats_numbers(page: str) -> None:
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert cells == ["20", "0.950", "n/a", "20", "0 of 20", "0.000"]


def test_columns_of_words_are_left_aligned() -> None:
    rows = [["a", "0.5 [0.4, 0.6]", "stop", 1], ["b", "-", "3 m", None]]
    page = Table(caption="c", columns=["name", "score", "level", "n"], rows=rows).to_html()
    words = [' class="words"' in cell for cell in re.findall(r"<t[dh](?: [^>]*)?>", page)]
    head, body = [True, False, True, False], [False, False, True, False]
    assert words == head + body + body


def test_table_on_a_terminal_is_aligned() -> None:
    assert table().to_text().splitlines() == [
        "Success.",
        "",
        "policy       n     rate  gated",
        "expert <b>  20    0.950    n/a",
        "random      20  0 of 20  0.000",
    ]


def test_table_in_a_terminal_has_aligned_columns() -> None:
    assert table().to_text().splitlines() == [
        "Success.",
        "",
        "policy       n     rate  gated",
        "expert <b>  20    0.950    n/a",
        "random      20  0 of 20  0.000",
    ]


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Table 'Wide.' needs 2 cells, got \['a'\]\."):
        Table(caption="Wide.", columns=["a", "b"], rows=[["a"]])


def decode(page: str) -> tuple[np.ndarray, av.VideoStream]:
    """Frames and stream of the only video of a page."""
    (video,) = Elements(page).all("video")
    content = base64.b64decode((video["src"] or "").removeprefix("data:video/mp4;base64,"))
    with av.open(BytesIO(content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames), container.streams.video[0]


def test_the_video_shows_the_panels_side_by_side_at_the_declared_rate(page: str) -> None:
    frames, stream = decode(page)
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert stream.average_rate == 5
    assert frames.shape == (6, 256, 2 * 192 + 8, 3)  # 16 x 12 pixels, 16 times
    for panel, left in ((video_frames(0), 0), (video_frames(1), 192 + 8)):
        for row in (64, 192):  # centres of the four blocks: no edge nearby
            for column in (48, 144):
                seen = frames[:, row, left + column].astype(int)
                meant = panel[:, row // 16, column // 16].astype(int)
                assert np.abs(seen - meant).max() <= 12  # loss of the codec


def test_odd_and_large_panels_become_a_playable_video(tmp_path: Path) -> None:
    odd = video_frames(0, size=(302, 102))[:, 1:, 1:]
    video = Video(panels={"only": odd}, rate_hz=7.5, caption="c")
    page = write_report(tmp_path / "report.html", "t", [Section("s", [video])]).read_text()
    frames, stream = decode(page)
    assert frames.shape == (6, 300, 100, 3)
    assert stream.average_rate == 7.5


def test_panels_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`panels` must share one shape, got .*'b': \(5, 16"):
        Video(panels={"a": video_frames(0), "b": video_frames(1, time=5)}, rate_hz=5.0, caption="c")


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        write_report(
            tmp_path / name, "t", [Section("s", [Figure(drawing=drawing(), alt="a", caption="c")])]
        ).read_bytes()
        for name in ("a.html", "b.html")
    )
    assert first == second


def test_a_failed_report_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path / "report.html", "old", [])

    def full_disk(*_: object, **__: object) -> int:
        path.parent.joinpath("partial").touch()
        raise OSError("No space left on device.")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(path, "new", [])
    path.parent.joinpath("partial").unlink()
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert "old" in path.read_text()


def test_reliability_diagram_leaves_out_empty_bins() -> None:
    sums = np.array([[3, 0, 1], [0.3, 0, 0.9], [0.6, 0, 0.8], [0, 0, 0]])
    upper, lower = report_figures.reliability_diagram({"nominal": ReliabilityBins(sums)}).axes
    assert upper.lines[1].get_xydata() == pytest.approx(np.array([[0.1, 0.2], [0.9, 0.8]]))
    assert lower.lines[0].get_xydata() == pytest.approx(np.array([[0.1, 75.0], [0.9, 25.0]]))


@pytest.mark.parametrize("seed", range(4))
def test_policy_names_never_overlap(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # The hard case: half of the policies good, half of them bad, all within a few points.
    successes = np.concatenate(
        (generator.integers(0, 3, (6, 2)), generator.integers(17, 21, (6, 2)))
    )
    imagined, real = ([wilson_interval(int(s), 20) for s in column] for column in successes.T)
    names = [f"policy number {i}" for i in range(12)]
    figure = report_figures.policy_scatter(names, imagined, real)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = axes.texts
    assert sorted(line for text in texts for line in text.get_text().split("\n")) == sorted(names)
    boxes = [Words.get_window_extent(text) for text in texts]  # without the lines to points
    points = axes.transData.transform(
        [(i.value, r.value) for i, r in zip(imagined, real, strict=True)]
    )
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_policy_scatter_draws_the_intervals() -> None:
    imagined, real = [wilson_interval(3, 10)], [wilson_interval(5, 10)]
    axes = report_figures.policy_scatter(["expert"], imagined, real).axes[0]
    across, along = axes.collections[0].get_segments()
    assert across == pytest.approx(np.array([[imagined[0].low, 0.5], [imagined[0].high, 0.5]]))
    assert along == pytest.approx(np.array([[0.3, real[0].low], [0.3, real[0].high]]))


def test_score_distributions_mark_threshold_and_medians() -> None:
    scores = {"nominal": np.array([0.0, 1.0, 5.0]), "lighting": np.array([4.0, 6.0])}
    axes = report_figures.score_distributions(scores, threshold=2.5, x_label="score").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(scores)
    assert axes.lines[0].get_xdata() == pytest.approx([2.5, 2.5])
    dots = [collection for collection in axes.collections if len(collection.get_offsets()) > 1]
    assert [dot.get_offsets()[:, 0].tolist() for dot in dots] == [[0.0, 1.0, 5.0], [4.0, 6.0]]
    bars = [c.get_segments()[0][0][0] for c in axes.collections if hasattr(c, "get_segments")]
    assert bars == [1.0, 5.0]


@pytest.mark.parametrize(("largest", "scale"), [(24.0, "linear"), (26.0, "symlog")])
def test_far_scores_leave_room_for_the_near_ones(largest: float, scale: str) -> None:
    scores = {"nominal": np.array([0.0, 1.0]), "background": np.array([5.0, largest])}
    figure = report_figures.score_distributions(scores, threshold=2.5, x_label="score")
    assert figure.axes[0].get_xscale() == scale
