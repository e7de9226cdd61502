"""Machines of a network on one machine: each site in a network namespace of its own (needs root and `ip netns`)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

DOOR = "10.77.255.1"  # the operator's address, on this machine's loopback
_NAME = f"fcit{os.getpid() % 10000}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _can(*commands: tuple[str, ...]) -> bool:
    return all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)


def available() -> bool:
    """Whether this user can make namespaces here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"{_NAME}try"
    return _can(("ip", "netns", "add", name), ("ip", "netns", "del", name))


class Network:
    """Sites 0, 1, ... each behind a link of its own."""

    def __init__(self, sites: int) -> None:
        self.sites = sites

    def inside(self, site: int) -> list[str]:
        """What stands before a command that is to run at a site."""
        return ["ip", "netns", "exec", f"{_NAME}-{site}"]

    def cut(self, site: int, whether: bool) -> None:
        """Drop every packet from and to a site, or no longer."""
        _ip("link", "set", self.link(site), "down" if whether else "up")

    def shape(self, site: int, rate: float | None) -> None:
        """Let no more than ``rate`` bits a second through, each way; a second call replaces the first. None: all."""
        for where, device in (([], self.link(site)), (self.inside(site), f"{_NAME}e{site}")):
            if rate is None:
                command = [*where, "tc", "qdisc", "replace", "dev", device, "root", "pfifo"]
            else:
                burst = max(16_000, int(rate / 8 / 100))  # bytes that a link of this rate passes in 10 ms
                limit = ["rate", f"{rate:.0f}bit", "burst", str(burst), "latency", "400ms"]
                command = [*where, "tc", "qdisc", "replace", "dev", device, "root", "tbf", *limit]
            subprocess.run(command, check=True, capture_output=True)

    def link(self, site: int) -> str:
        """This machine's end of a site's link."""
        return f"{_NAME}v{site}"

    def _add(self, site: int) -> None:
        name, near, far = f"{_NAME}-{site}", self.link(site), f"{_NAME}e{site}"
        _ip("netns", "add", name)
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "netns", name)
        _ip("addr", "add", f"10.77.{site}.1/30", "dev", near)
        _ip("link", "set", near, "up")
        for words in (
            ["addr", "add", f"10.77.{site}.2/30", "dev", far],
            ["link", "set", far, "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", f"10.77.{site}.1"],
        ):
            _ip("-n", name, *words)


@contextmanager
def network(sites: int) -> Iterator[Network]:
    """A network that is there for the body.

    Raises:
        subprocess.CalledProcessError: it cannot be made; ask :func:`available` first.
    """
    net = Network(sites)
    try:
        _ip("addr", "add", f"{DOOR}/32", "dev", "lo")
        for site in range(sites):
            net._add(site)
        yield net
    finally:
        for words in [("link", "del", net.link(site)) for site in range(sites)]:
            with suppress(subprocess.CalledProcessError):
                _ip(*words)
        for site in range(sites):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", f"{_NAME}-{site}")
        with suppress(subprocess.CalledProcessError):
            _ip("addr", "del", f"{DOOR}/32", "dev", "lo")
