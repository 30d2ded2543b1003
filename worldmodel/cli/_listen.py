"""`worldmodel watch --listen`: the monitor as a service for robots."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldmodel.cli.watch import Command
    from worldmodel.model import WorldModel
    from worldmodel.monitors.monitor import RuntimeMonitor
    from worldmodel.runtime.server import MonitorService
    from worldmodel.runtime.session import WatchSession


def listen(command: Command) -> int:
    """Serve until the process is told to stop."""
    from worldmodel.cli.watch import load_watcher
    from worldmodel.runtime.live import live_monitor
    from worldmodel.runtime.server import MonitorService, ServiceConfig, read_api_key, split_address

    host, port = split_address(command.listen or "")
    deadline_s = seconds(command.deadline_ms)
    config = ServiceConfig(
        host=host,
        port=port,
        api_key=read_api_key(command.api_key_file),
        max_sessions=command.max_sessions,
        out=command.out,
    )
    model, trust, *folders = load_watcher(command)
    monitor = live_monitor(model, trust) if command.imagine else trust.monitor
    monitor.deadline_s = deadline_s
    metadata = service_metadata(model, monitor, *folders)
    asyncio.run(serve_until_told(MonitorService(sessions(model, monitor), metadata, config)))
    return 0


def seconds(deadline_ms: float | None) -> float | None:
    """The deadline of a verdict in seconds."""
    if deadline_ms is not None and not 0 < deadline_ms < math.inf:
        raise ValueError(f"`deadline_ms` must be above 0 and finite, got {deadline_ms}.")
    return None if deadline_ms is None else deadline_ms / 1000


def sessions(model: WorldModel, monitor: RuntimeMonitor) -> Callable[[Path | None], WatchSession]:
    """Makes sessions that share one model and one fitted monitor, with its deadline."""
    from worldmodel.runtime.session import WatchSession

    cameras = model.config.cameras
    return lambda log: WatchSession(monitor.sibling(), cameras, log)


def service_metadata(
    model: WorldModel, monitor: RuntimeMonitor, checkpoint: Path, folder: Path
) -> dict[str, Any]:
    """What every robot is told first."""
    from worldmodel.checkpoint import fingerprint

    return {
        "server": "worldmodel watch",
        "version": version("worldmodel"),
        "cameras": list(model.config.cameras),
        "frame_shape": list(monitor.frame_shape_),
        "deadline_s": monitor.deadline_s,
        "rate_hz": model.config.rate_hz,
        "action_spec": asdict(model.config.action_spec),
        "model_hash": fingerprint(checkpoint),
        "monitor_hash": fingerprint(folder),
        "channels": list(monitor.judge_.channels_.names),
        "imagines": monitor.claims is not None,
    }


async def serve_until_told(service: MonitorService) -> None:
    """Serve until SIGINT or SIGTERM, then say goodbye to every robot."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await service.run(stop, on_ready=announce)


def announce(host: str, port: int) -> None:
    """Say where robots can connect."""
    where = f"[{host}]" if ":" in host else host
    print(f"Listening at ws://{where}:{port}; Ctrl-C ends it.", flush=True)
