"""Limits per address and per connection, with a clock of the test's own."""

import socket

import pytest

from worldmodel.runtime import limits
from worldmodel.runtime.limits import AddressLimits, TokenBucket, listen, network


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_allows_a_burst_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(per_s=2.0, burst=3, clock=clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now = 0.4
    assert not bucket.take()
    clock.now = 0.5
    assert [bucket.take(), bucket.take()] == [True, False]
    clock.now = 1000.0
    assert bucket.is_full()
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def limited(clock: Clock) -> AddressLimits:
    return AddressLimits(max_connects_per_minute=2, max_sessions=1, clock=clock)


def test_every_address_has_its_own_connects() -> None:
    clock = Clock()
    addresses = limited(clock)
    assert [addresses.may_connect("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert addresses.may_connect("192.0.2.2")
    clock.now = 30.0
    assert [addresses.may_connect("192.0.2.1") for _ in range(2)] == [True, False]


def test_a_host_cannot_escape_by_another_address_of_its_network() -> None:
    addresses = limited(Clock())
    shown = [addresses.may_connect(f"2001:db8::{n:x}") for n in range(3)]
    assert shown == [True, True, False]
    assert addresses.may_connect("2001:db8:0:1::1")
    assert network("::1") == "::/64"


def test_sessions_are_freed_even_after_an_error() -> None:
    addresses = limited(Clock())
    with addresses.session("192.0.2.1") as first, addresses.session("192.0.2.1") as second:
        assert (first, second) == (True, False)
        with addresses.session("192.0.2.2") as other:
            assert other
    with pytest.raises(RuntimeError), addresses.session("192.0.2.1"):
        raise RuntimeError
    with addresses.session("192.0.2.1") as again:
        assert again


def test_the_memory_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle addresses are forgotten first; one at its limit is not let in again by newer ones."""
    monkeypatch.setattr(limits, "MAX_ADDRESSES", 10)
    clock = Clock()
    addresses = limited(clock)
    for n in range(9):
        addresses.may_connect(f"192.0.2.{n}")
    clock.now = 60.0
    assert [addresses.may_connect("198.51.100.1") for _ in range(3)] == [True, True, False]
    for n in range(9):
        addresses.may_connect(f"203.0.113.{n}")
    assert not addresses.may_connect("198.51.100.1")
    for n in range(100):
        addresses.may_connect(f"203.0.113.{n}")
        assert len(addresses._connects) <= 10


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port}: address already"):
            listen("127.0.0.1", port, lambda address: True)
