"""Floods, TLS, metrics and deadlines of the service: one peer's misbehaviour is its own problem."""

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trustme

from tests.monitor_service import ACTION, CAMERAS, UPGRADE, Served, ask, closed, draw_frames, talk
from worldmodel.monitors import RuntimeMonitor
from worldmodel.runtime import session as session_module
from worldmodel.runtime.client import MonitorClient, MonitorError, pack
from worldmodel.runtime.server import ServiceConfig, split_address, tls_context
from worldmodel.runtime.session import WatchSession

PONG, PING, FRAGMENT = b"\x8a\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x00\x80\0\0\0\0"
FIRST_FRAGMENT = b"\x02\x80\0\0\0\0"


def raw_connection(address: str) -> socket.socket:
    host, port = split_address(address.removeprefix("ws://"))
    return socket.create_connection((host, port), timeout=30)


def send_until_cut(peer: socket.socket, data: bytes) -> None:
    """Send the same bytes until the service resets the connection."""
    try:
        while True:
            peer.sendall(data)
    except (ConnectionError, ssl.SSLError):
        return


def scraped(address: str, key: str | None = None) -> dict[str, float]:
    """Series -> value at /metrics."""
    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    url = address.replace("ws", "http", 1) + "/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        lines = response.read().decode().splitlines()
    series = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in series}


@pytest.mark.parametrize(
    "flood",
    [PONG * 10_000, PING * 10_000, FIRST_FRAGMENT + FRAGMENT * 10_000],
    ids=["pongs", "pings", "empty fragments"],
)
def test_a_flood_of_small_frames_is_cut_off(served: Served, flood: bytes) -> None:
    address = served()
    with talk(address) as robot, raw_connection(address) as peer:
        peer.sendall(UPGRADE)
        assert peer.recv(12) == b"HTTP/1.1 101"
        send_until_cut(peer, flood)
        assert ask(robot, pack({"observation": None}))["step"] == 0
        assert scraped(address)['worldmodel_refusals_total{reason="small_frames"}'] == 1


def test_a_hundred_pings_and_a_fragmented_message_are_no_flood(served: Served) -> None:
    with talk(served()) as connection:
        for _ in range(100):
            assert connection.ping().wait(30)
        message = pack({"observation": np.zeros((2, 16, 16, 3), np.uint8)})
        connection.send([message[i : i + 100] for i in range(0, len(message), 100)])
        assert connection.recv(timeout=30)


def test_one_address_has_few_sessions(served: Served) -> None:
    address = served(max_sessions_per_address=1)
    with talk(address), pytest.raises(MonitorError, match="all 1 sessions of your address"):
        MonitorClient(address)
    with talk(address) as freed:
        assert "error" in ask(freed, pack({}))


def test_one_address_connects_few_times_a_minute(served: Served) -> None:
    address = served(max_connects_per_minute=3)
    with talk(address) as robot:
        for _ in range(2):
            raw_connection(address).close()
        for _ in range(3):
            with pytest.raises(MonitorError, match="No connection"):
                MonitorClient(address)
        assert ask(robot, pack({"observation": None}))["step"] == 0


def test_the_key_opens_the_metrics(served: Served) -> None:
    address = served(api_key="s3cret")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        scraped(address)
    with MonitorClient(address, "s3cret", timeout_s=30.0) as client:
        frames = draw_frames(np.random.default_rng(0), 3)
        levels = [client.update(frame, ACTION)["level"] for frame in frames]
        levels.append(client.update(None, None)["level"])
        assert scraped(address, "s3cret")["worldmodel_open_sessions"] == 1
    with talk(address, additional_headers={"Authorization": "Api-Key s3cret"}) as connection:
        ask(connection, pack({"observation": None, "id": "x"}))
        connection.send("text")
        closed(connection)
    found = scraped(address, "s3cret")
    for level in ("trust", "notice", "degrade", "stop"):
        assert found[f'worldmodel_verdicts_total{{level="{level}"}}'] == levels.count(level)
    for reason in ("key", "message", "text"):
        assert found[f'worldmodel_refusals_total{{reason="{reason}"}}'] == 1
    assert found['worldmodel_refusals_total{reason="idle"}'] == 0
    assert found["worldmodel_sessions_total"] == 2
    assert found["worldmodel_verdict_latency_seconds_count"] == 4
    assert found['worldmodel_verdict_latency_seconds_bucket{le="+Inf"}'] == 4


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.fixture(scope="module")
def certificate(
    authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """PEM files of a certificate for this machine, and of its key."""
    issued = authority.issue_cert("localhost", "127.0.0.1", key_type=trustme.KeyType.ECDSA)
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(cert, append=True)
    issued.private_key_pem.write_to_path(key)
    return cert, key


def test_tls_carries_the_same_verdicts(
    served: Served, authority: trustme.CA, certificate: tuple[Path, Path]
) -> None:
    address = served(tls=tls_context(*certificate))
    secure = address.replace("ws://", "wss://")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    (frame,) = draw_frames(np.random.default_rng(0), 1)
    with MonitorClient(secure, timeout_s=30.0, ssl=trusting) as client:
        assert client.metadata["cameras"] == list(CAMERAS)
        large = frame.repeat(16, axis=1).repeat(16, axis=2)
        assert client.update(large, ACTION)["step"] == 0
    with pytest.raises(MonitorError, match="certificate verify failed"):
        MonitorClient(secure)
    with pytest.raises(MonitorError, match="No connection"):
        MonitorClient(address)


def test_a_flood_behind_tls_is_cut_off(
    served: Served, authority: trustme.CA, certificate: tuple[Path, Path]
) -> None:
    address = served(tls=tls_context(*certificate))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with trusting.wrap_socket(raw_connection(address), server_hostname="localhost") as peer:
        peer.sendall(UPGRADE)
        assert peer.recv(12) == b"HTTP/1.1 101"
        send_until_cut(peer, PONG * 1000)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda cert, key: (cert, None), "must be given together"),
        (lambda cert, key: (None, key), "must be given together"),
        (lambda cert, key: (cert, key.parent / "none"), "`tls_key` must be a PEM file, but"),
        (lambda cert, key: (cert.parent, key), "`tls_cert` must be a PEM file, but"),
        (lambda cert, key: (key, key), "must be a PEM certificate and its private key"),
        (lambda cert, key: (cert, cert), "must be a PEM certificate and its private key"),
    ],
)
def test_certificates_that_are_none(
    certificate: tuple[Path, Path], spoil: Callable[[Path, Path], tuple[object, object]], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        tls_context(*spoil(*certificate))


def test_another_key_and_a_passphrase_are_refused(
    authority: trustme.CA, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    authority.issue_cert("localhost").private_key_pem.write_to_path(other)
    with pytest.raises(ValueError, match=r"its private key, got .* \(KEY_VALUES_MISMATCH\)"):
        tls_context(certificate[0], other)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(encrypted(certificate[1].read_bytes()))
    with pytest.raises(ValueError, match="must have no passphrase"):
        tls_context(certificate[0], locked)


def encrypted(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    lock = form.BestAvailableEncryption(b"secret")
    key = form.load_pem_private_key(pem, None)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock)


def test_tls_does_not_replace_the_key() -> None:
    with pytest.raises(ValueError, match="an API key is required"):
        ServiceConfig(host="0.0.0.0", port=0, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


@pytest.mark.parametrize("name", ["max_sessions_per_address", "max_connects_per_minute"])
def test_limits_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        ServiceConfig(**{"host": "127.0.0.1", "port": 0, name: 0})


def test_the_deadline_counts_from_the_undecoded_message(
    fitted: RuntimeMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding takes one second of the monitor's own clock, scaling another."""
    clock = [0.0]
    monitor = fitted.sibling()
    monitor.clock, monitor.deadline_s = lambda: clock[0], 1.5
    unpack, checked = session_module.unpack, session_module.checked_frames

    def slow(function: Callable[..., object]) -> Callable[..., object]:
        def slowed(*arguments: object) -> object:
            clock[0] += 1.0
            return function(*arguments)

        return slowed

    (frame,) = draw_frames(np.random.default_rng(0), 1)
    session = WatchSession(monitor, CAMERAS)
    monkeypatch.setattr(session_module, "unpack", slow(unpack))
    reply = session.answer(pack({"observation": frame, "action": ACTION}))
    assert reply["latency_s"] == 1.0
    assert "monitor.deadline" not in reply["causes"]
    monkeypatch.setattr(session_module, "checked_frames", slow(checked))
    reply = session.answer(pack({"observation": frame, "action": ACTION}))
    assert (reply["latency_s"], reply["level"]) == (2.0, "stop")
    assert "monitor.deadline" in reply["causes"]


def test_flat_keys_and_floats_give_the_verdict_of_the_frame(
    fitted: RuntimeMonitor, served: Served
) -> None:
    address, rng = served(), np.random.default_rng(0)
    with talk(address) as flat, MonitorClient(address, timeout_s=30.0) as client:
        for frame in draw_frames(rng, 3):
            keys = {
                f"observation/{camera}": view for camera, view in zip(CAMERAS, frame, strict=True)
            }
            sent = {**keys, "observation/state": np.zeros(8), "prompt": "pick", "action": ACTION}
            wanted = client.update({name: view / 255 for name, view in keys.items()}, ACTION)
            found = ask(flat, pack(sent))
            for verdict in (wanted, found):
                del verdict["latency_s"], verdict["id"]
            assert str(found) == str(wanted)
            assert wanted["evidence"]["appearance"]["score"] is not None
        wrong = client.update({"front": frame[0], "hand": frame[1]}, ACTION)
    assert (wrong["level"], wrong["causes"]) == ("stop", ["sensor.dropped"])
    assert wrong["evidence"]["sensor.dropped"]["note"] == (
        "camera 'wrist': it is missing: expected the cameras 'front', 'wrist', received 'front', "
        "'hand'."
    )


def test_a_wrong_shape_is_found_before_anything_is_imagined(fitted: RuntimeMonitor) -> None:
    class Imagination:
        num_frames = 0

        def sibling(self) -> "Imagination":
            return self

        def reset(self) -> None:
            pass

        def observe(self, frame: np.ndarray, action: np.ndarray) -> None:
            self.num_frames += 1

        def imagine(self, executed: object = None) -> None:
            pass

    monitor = fitted.sibling()
    monitor.claims = imagination = Imagination()
    session = WatchSession(monitor, CAMERAS)
    (frame,) = draw_frames(np.random.default_rng(0), 1)
    session.answer(pack({"observation": frame, "action": ACTION}))
    assert imagination.num_frames == 1
    reply = session.answer(pack({"observation": frame.transpose(0, 3, 1, 2), "action": ACTION}))
    session.imagine()
    assert imagination.num_frames == 1
    assert reply["causes"] == ["sensor.shape"]
    note = reply["evidence"]["sensor.shape"]["note"]
    assert "(16, 16, 3)" in note
    assert "(3, 16, 16)" in note
