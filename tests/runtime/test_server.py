"""The monitor behind a websocket: the same verdicts, one session per robot, and no way to hang."""

import select
import socket
import threading
from contextlib import suppress
from pathlib import Path

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.monitor_service import (
    ABOUT,
    ACTION,
    CAMERAS,
    SHAPE,
    UPGRADE,
    Served,
    ask,
    closed,
    draw_frames,
    features,
    serving,
    talk,
)
from worldmodel.monitors import RuntimeMonitor
from worldmodel.monitors.alert_log import read_alerts
from worldmodel.monitors.verdict import Verdict
from worldmodel.runtime import server as service
from worldmodel.runtime.client import MonitorClient, MonitorError, pack
from worldmodel.runtime.server import ServiceConfig, read_api_key, split_address
from worldmodel.runtime.session import WatchSession


def same(mine: dict[str, object], wanted: Verdict) -> bool:
    """Whether a verdict over the wire is one in this process, to the bit; but for its latency."""
    return Verdict.from_dict(mine) == wanted


def test_verdicts_are_those_of_the_monitor_called_directly(
    fitted: RuntimeMonitor, served: Served
) -> None:
    """Two episodes with odd frames, a black one, a broken action; as cameras and as one array."""
    rng, local = np.random.default_rng(1), fitted.sibling()
    levels = set()
    with MonitorClient(served(), timeout_s=30.0) as client:
        assert client.metadata["cameras"] == list(CAMERAS)
        for episode in range(2):
            local.reset()
            client.reset()
            frames = draw_frames(rng, 12)
            frames[4] = draw_frames(rng, 1, bright=60)[0]
            frames[8] = 0
            for step, frame in enumerate(frames):
                action = ACTION[:3] if step == 11 else ACTION if step else None
                shown = dict(zip(CAMERAS, frame, strict=True)) if episode else frame
                verdict = client.update(shown, action)
                assert (verdict["step"], verdict["id"]) == (step, step + 1 + 12 * episode)
                assert same(verdict, local.update(frame, action))
                levels.add(verdict["level"])
    assert {"trust", "stop"} <= levels


def test_robots_are_not_mixed_up(fitted: RuntimeMonitor, served: Served) -> None:
    """One sees odd frames, the other nominal ones; they start apart and take turns unevenly."""
    rng, address = np.random.default_rng(2), served()
    with (
        MonitorClient(address, timeout_s=30.0) as odd,
        MonitorClient(address, timeout_s=30.0) as calm,
    ):
        robots = [(odd, fitted.sibling(), 60.0), (calm, fitted.sibling(), 0.0)]
        for turn in rng.integers(0, 2, 40):
            client, local, bright = robots[turn]
            (frame,) = draw_frames(rng, 1, bright)
            assert same(client.update(frame, ACTION), local.update(frame, ACTION))


def test_one_robot_too_many_is_told_so(served: Served) -> None:
    address = served(max_sessions=1)
    with talk(address), connect(address) as refused:
        assert closed(refused) == (1013, "all 1 sessions are in use; try again later")
    with talk(address) as freed:
        assert "error" in ask(freed, pack({}))


@pytest.mark.parametrize("key", [None, "", "wrong", "s3cre", "s3cret "])
def test_only_who_has_the_key_is_let_in(served: Served, key: str | None) -> None:
    address = served(api_key="s3cret")
    with pytest.raises(
        MonitorError, match=r"refused the connection: HTTP 401 .* Authorization: Api-Key KEY"
    ):
        MonitorClient(address, api_key=key and key.replace(" ", "x"))
    with MonitorClient(address, api_key="s3cret") as client:
        assert client.metadata["cameras"] == list(CAMERAS)


def test_a_page_in_a_browser_is_no_robot(served: Served) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(served(), origin="http://example.com"),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_no_other_address_than_this_machine_without_a_key() -> None:
    with pytest.raises(ValueError, match=r"an API key is required: set WORLDMODEL_API_KEY"):
        ServiceConfig(host="0.0.0.0", port=0)
    assert "s3cret" not in repr(ServiceConfig(host="0.0.0.0", port=0, api_key="s3cret"))


def test_too_large_a_message_ends_the_session(served: Served) -> None:
    with talk(served(max_message_bytes=1000)) as connection:
        connection.send(b"x" * 1001)
        code, reason = closed(connection)
    assert code == 1009
    assert "1000" in reason


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pack([1, 2]), 'must be a map with the key "observation"'),
        (pack({"obs": 1}), 'must be a map with the key "observation"'),
        (pack({"observation": None, "reset": 1}), '"reset" must be true or false, got int'),
        (pack({"observation": None, "id": "x"}), '"id" must be an integer, got str'),
        (
            msgpack.packb(
                {"observation": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}}
            ),
            "must hold numbers or text, got dtype object",
        ),
    ],
    ids=["list", "no observation", "reset", "id", "objects"],
)
def test_a_wrong_message_is_answered_and_the_session_goes_on(
    served: Served, message: bytes, text: str
) -> None:
    with talk(served()) as connection:
        reply = ask(connection, message)
        assert text in str(reply["error"])
        assert str(reply["error"]).endswith(".")
        assert ask(connection, pack({"observation": None}))["step"] == 0


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [("hello", 1003, "not text"), (b"\xc1" * 9, 1007, "not msgpack"), (b"", 1007, "not msgpack")],
)
def test_what_is_no_message_ends_the_session(
    served: Served, message: str | bytes, code: int, text: str
) -> None:
    with talk(served()) as connection:
        connection.send(message)
        found, reason = closed(connection)
    assert (found, text in reason) == (code, True)


def test_a_half_closed_and_a_silent_peer_are_left(served: Served) -> None:
    address = served(idle_timeout_s=0.2)
    with talk(address) as silent:
        assert closed(silent) == (1008, "no message for 0.2 s")
    host, port = split_address(address.removeprefix("ws://"))
    with socket.create_connection((host, port), timeout=30) as half:
        half.sendall(UPGRADE)
        assert half.recv(12) == b"HTTP/1.1 101"
        half.shutdown(socket.SHUT_WR)
        while half.recv(4096):
            pass


def test_a_peer_that_reads_nothing_is_cut_off(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first message larger than all buffers; and the only session is free again."""
    monkeypatch.setitem(ABOUT, "ballast", bytes(2**24))
    monkeypatch.setattr(service, "REPLY_TIMEOUT_S", 0.1)
    address = served(max_sessions=1)
    with socket.create_connection(split_address(address.removeprefix("ws://"))) as deaf:
        deaf.sendall(UPGRADE)
        poller = select.poll()
        poller.register(deaf, 0)  # errors alone
        assert poller.poll(30_000)
    monkeypatch.setattr(service, "REPLY_TIMEOUT_S", 30.0)
    for _ in range(100):
        with connect(address, compression=None, max_size=None) as peer, suppress(ConnectionClosed):
            assert len(peer.recv(timeout=30)) > 2**24
            return
    pytest.fail("the session is not free")


def test_frames_of_another_size_are_scaled_and_of_other_proportions_refused(
    served: Served,
) -> None:
    rng = np.random.default_rng(3)
    with MonitorClient(served(), timeout_s=30.0) as client:
        (frame,) = draw_frames(rng, 1)
        large = frame.repeat(3, axis=1).repeat(3, axis=2)
        assert client.update(large, ACTION)["evidence"]["appearance"]["score"] is not None
        wide = client.update(frame.repeat(2, axis=2), ACTION)
        assert wide["causes"] == ["sensor.shape"]
        (note,) = (found["note"] for found in wide["evidence"].values())
        assert note.startswith("camera 'front': the image must have shape")
        missing = client.update({"front": frame[0]}, ACTION)
        assert missing["causes"] == ["sensor.dropped"]
        assert missing["evidence"]["sensor.dropped"]["note"].startswith("camera 'wrist': ")


def test_capture_times_beside_the_cameras_reach_the_monitor(fitted: RuntimeMonitor) -> None:
    session = WatchSession(fitted.sibling(), CAMERAS)

    def causes(frame: np.ndarray, time_s: object) -> list[str]:
        observation = {**dict(zip(CAMERAS, frame, strict=True)), "time_s": time_s}
        return session.answer(pack({"observation": observation}))["causes"]

    frames = draw_frames(np.random.default_rng(8), 4)
    assert "sensor.late" not in causes(frames[0], 10.0)
    assert "sensor.late" not in causes(frames[1], [10.2, 10.2])
    assert causes(frames[2], np.array([10.4, 10.2])) == ["sensor.late"]
    assert causes(frames[3], "now") == ["sensor.late"]


@pytest.mark.parametrize("observation", [None, 1, "x", {}, {"front": np.zeros(SHAPE, np.uint8)}])
def test_garbage_is_never_trusted(served: Served, observation: object) -> None:
    with talk(served()) as connection:
        assert ask(connection, pack({"observation": observation}))["level"] == "stop"


def test_verdicts_are_on_disk_at_once(served: Served, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    with MonitorClient(served(out=tmp_path / "log"), timeout_s=30.0) as client:
        shown = [client.update(frame, ACTION) for frame in draw_frames(rng, 3)]
        client.reset()
        shown.append(client.update(draw_frames(rng, 1)[0], ACTION))
        (file,) = (tmp_path / "log").glob("session-*.jsonl")
        alerts = list(read_alerts(file))
    assert [alert.step for alert in alerts] == [0, 1, 2, 0]
    assert [alert.episode for alert in alerts] == ["0", "0", "0", "1"]
    assert all(same(verdict, alert.verdict) for verdict, alert in zip(shown, alerts, strict=True))


def test_a_verdict_that_cannot_be_logged_is_a_stop(fitted: RuntimeMonitor, tmp_path: Path) -> None:
    session = WatchSession(fitted.sibling(), CAMERAS, tmp_path)
    (frame,) = draw_frames(np.random.default_rng(5), 1)
    reply = session.answer(pack({"observation": frame}))
    assert (reply["level"], reply["causes"]) == ("stop", ["monitor.log"])


def test_late_answers_are_never_taken_for_later_ones(fitted: RuntimeMonitor) -> None:
    slow, go_on = fitted.sibling(), threading.Event()

    def waiting(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert go_on.wait(30)
        return features(frame)

    slow.features = waiting
    frames = draw_frames(np.random.default_rng(6), 2)
    with serving(slow) as address, MonitorClient(address, timeout_s=0.2) as client:
        with pytest.raises(MonitorError, match=r"did not answer within 0\.2 s"):
            client.update(frames[0], ACTION)
        go_on.set()
        client.timeout_s = 30.0
        assert same(client.update(frames[1], ACTION), fitted.sibling().update(frames[1], ACTION))


def test_a_lost_server_stays_lost(fitted: RuntimeMonitor) -> None:
    (frame,) = draw_frames(np.random.default_rng(7), 1)
    with serving(fitted) as address:
        port = split_address(address.removeprefix("ws://"))[1]
        client = MonitorClient(address, timeout_s=30.0)
        assert client.update(frame, ACTION)["step"] == 0
    with serving(fitted, port=port):
        for _ in range(2):
            with pytest.raises(MonitorError, match=f"No connection to {address}: .*1001"):
                client.update(frame, ACTION)
            client.reset()
        client.close()
        with MonitorClient(address, timeout_s=30.0) as again:
            assert again.update(frame, ACTION)["step"] == 0


@pytest.mark.parametrize("address", ["8765", ":8765", "::1:8765", "host:", "host:x", "a:99999"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match="`listen` must"):
        split_address(address)


def test_the_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(service.KEY_VARIABLE, raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv(service.KEY_VARIABLE, "from-environment")
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert (read_api_key(None), read_api_key(file)) == ("from-environment", "from-file")
    file.write_text("\n")
    with pytest.raises(ValueError, match="must be one line of printable ASCII"):
        read_api_key(file)
