"""Ports as people type them, and the "host:port" they are part of."""

from __future__ import annotations

import re

HIGHEST = 65535
"""The largest number of a TCP port."""

ENDPOINT = re.compile(r"(?P<host>\[[^\[\]\s/@]+\]|[^\[\]:\s/@]+):(?P<port>\d+)", re.ASCII)


def check(port: int, least: int = 1) -> int:
    """The port itself. Raises ValueError for one out of range; with `least` 0 it may be left to the system."""
    if not least <= port <= HIGHEST:
        raise ValueError(f"port {port} is not between {least} and {HIGHEST}")
    return port


def endpoint(text: str) -> tuple[str, int]:
    """Host and port of "host:port", an IPv6 address in brackets without them. Raises ValueError saying what is wrong:
    the form or the port."""
    found = ENDPOINT.fullmatch(text)
    if found is None:
        raise ValueError("it is not of the form host:port, such as fl.example.org:8443 or [::1]:8443")
    return found["host"].strip("[]"), check(int(found["port"]))
