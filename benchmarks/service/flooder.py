"""Process that floods the monitor service until its standard input closes.

`python -m benchmarks.service.flooder KIND ADDRESS`; `benchmarks.service.floods` starts it.
"""

from __future__ import annotations

import os
import socket
import sys

from benchmarks.service.abuse import FIRST_FRAGMENT, FRAGMENT, PING, PONG, upgrade

KEY = "benchmark"
SOURCE = "127.0.0.2"
"""Address of the flooding process."""
FLOODS = {
    "pongs": (b"", PONG * 10_000),
    "pings": (b"", PING * 10_000),
    "empty fragments": (FIRST_FRAGMENT, FRAGMENT * 10_000),
    "connects": (b"", b""),
}
"""Flood -> bytes sent first and then repeated; "connects" closes at once what it opened."""


def is_wanted() -> bool:
    """Whether the parent process still holds the other end of standard input."""
    try:
        return os.read(0, 1) != b""
    except BlockingIOError:
        return True


def flood(kind: str, address: str) -> tuple[int, float]:
    """Flood, and reconnect when cut off; returns the number of connections and the MiB sent."""
    host, port = address.removeprefix("ws://").split(":")
    first, repeated = FLOODS[kind]
    connects, sent = 0, 0
    while is_wanted():
        try:
            with socket.create_connection((host, int(port)), 5, (SOURCE, 0)) as peer:
                connects += 1
                if not repeated:
                    continue
                peer.sendall(upgrade(KEY) + first)
                peer.settimeout(0.5)
                while is_wanted():
                    sent += peer.send(repeated)
        except OSError:
            continue
    return connects, sent / 2**20


def main() -> None:
    """Flood with the lowest priority, as if from another machine."""
    _, kind, address = sys.argv
    os.nice(19)
    os.set_blocking(0, False)
    print("ready", flush=True)
    print(*flood(kind, address))


if __name__ == "__main__":
    main()
