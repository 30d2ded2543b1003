"""Serve the monitor to robots over a websocket until SIGINT or SIGTERM.

Each connection is one session: the robot sends frames and actions and receives a verdict on each.
`worldmodel watch` monitors recorded episodes.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldmodel.cli._device import AUTOMATIC, Networks

if TYPE_CHECKING:
    from worldmodel.calibration.calibrated import Checkpoint
    from worldmodel.model import WorldModel
    from worldmodel.monitors.monitor import RuntimeMonitor
    from worldmodel.runtime.server import MonitorService
    from worldmodel.runtime.session import WatchSession


@dataclass(frozen=True, kw_only=True)
class Command:
    """Options of `worldmodel serve`."""

    model: str
    """Folder of a calibrated checkpoint, or the name of a shipped one ("tabletop")."""
    listen: str = "127.0.0.1:8765"
    """HOST:PORT of the websocket; hosts other than the local 127.0.0.1 require an API key."""
    monitor: Path | None = None
    """Folder that `worldmodel calibrate` wrote; None: `monitor` in the checkpoint."""
    out: Path | None = None
    """Folder for the verdicts, one JSON lines file per session; None: write no files."""
    max_sessions: int = 32
    """Largest number of simultaneous sessions."""
    max_sessions_per_address: int = 8
    """Largest number of simultaneous sessions of one client address."""
    max_connects_per_minute: int = 120
    """Largest number of connections that one client address opens in a minute."""
    tls_cert: Path | None = None
    """PEM file with a certificate and its chain, to encrypt the traffic; robots then connect to
    wss://HOST:PORT. None: no encryption."""
    tls_key: Path | None = None
    """PEM file with the private key of the certificate, without passphrase."""
    api_key_file: Path | None = None
    """File with the API key that robots must send; None: environment variable
    WORLDMODEL_API_KEY."""
    deadline_ms: float | None = None
    """Time limit of a verdict in milliseconds; a late verdict is a stop with the cause
    "monitor.deadline"; None: no limit."""
    imagine: bool = True
    """Predict the next frame of every robot and check it on arrival, which detects actions that the
    robot does not execute. A step takes about four times as long, mostly after the verdict."""
    networks: Networks = AUTOMATIC


def run(command: Command) -> int:
    """Serve until SIGINT or SIGTERM."""
    from worldmodel.calibration.calibrated import Checkpoint
    from worldmodel.certificate import log_certificate
    from worldmodel.runtime.live import online_monitor
    from worldmodel.runtime.server import (
        MonitorService,
        ServiceConfig,
        read_api_key,
        split_address,
        tls_context,
    )

    host, port = split_address(command.listen)
    deadline_s = seconds(command.deadline_ms)
    config = ServiceConfig(
        host=host,
        port=port,
        api_key=read_api_key(command.api_key_file),
        tls=tls_context(command.tls_cert, command.tls_key),
        max_sessions=command.max_sessions,
        max_sessions_per_address=command.max_sessions_per_address,
        max_connects_per_minute=command.max_connects_per_minute,
        out=command.out,
    )
    checkpoint = Checkpoint.load(
        command.model, monitor=command.monitor, **command.networks.placement
    )
    log_certificate(checkpoint.folder)
    model, calibration = checkpoint.model, checkpoint.calibration
    monitor = online_monitor(model, calibration) if command.imagine else calibration.monitor
    monitor.deadline_s = deadline_s
    metadata = service_metadata(checkpoint, monitor)
    asyncio.run(serve_until_told(MonitorService(sessions(model, monitor), metadata, config)))
    return 0


def seconds(deadline_ms: float | None) -> float | None:
    """Deadline of a verdict in seconds."""
    if deadline_ms is not None and not 0 < deadline_ms < math.inf:
        raise ValueError(f"`deadline_ms` must be above 0 and finite, got {deadline_ms}.")
    return None if deadline_ms is None else deadline_ms / 1000


def sessions(model: WorldModel, monitor: RuntimeMonitor) -> Callable[[Path | None], WatchSession]:
    """Factory of sessions that share one model and one fitted monitor."""
    from worldmodel.runtime.session import WatchSession

    cameras = model.config.cameras
    return lambda log: WatchSession(monitor.sibling(), cameras, log)


def service_metadata(checkpoint: Checkpoint, monitor: RuntimeMonitor) -> dict[str, Any]:
    """First message to every robot."""
    from worldmodel.checkpoint import fingerprint
    from worldmodel.precision import dtype_name

    config = checkpoint.model.config
    return {
        "server": "worldmodel serve",
        "version": version("worldmodel"),
        "cameras": list(config.cameras),
        "frame_shape": list(monitor.frame_shape_),
        "deadline_s": monitor.deadline_s,
        "rate_hz": config.rate_hz,
        "action_spec": asdict(config.action_spec),
        "model_hash": fingerprint(checkpoint.folder),
        "monitor_hash": fingerprint(checkpoint.monitor_folder),
        "channels": list(monitor.alarm_rule_.channels_.names),
        "dtype": dtype_name(checkpoint.model.dynamics.compute_dtype),
        "imagines": monitor.claims is not None,
    }


async def serve_until_told(service: MonitorService) -> None:
    """Print the address and serve until SIGINT or SIGTERM, then close every connection."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    scheme = "ws" if service.config.tls is None else "wss"

    def announce(host: str, port: int) -> None:
        where = f"[{host}]" if ":" in host else host
        print(f"Listening at {scheme}://{where}:{port}; Ctrl-C ends it.", flush=True)

    await service.run(stop, on_ready=announce)
