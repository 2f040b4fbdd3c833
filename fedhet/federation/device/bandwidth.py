"""How fast a device's link to its server is, by bytes sent and fetched over the enrolment service.

Blocks grow by four until one takes long enough to be told from the delay of the line, which is measured first and
taken off:

    bytes per second = block / (seconds of the block - seconds of an empty request)
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from fedhet.federation.device.state import Device

SIZES = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Bytes of the blocks. The server refuses larger ones."""
ENOUGH_S = 0.4
"""A block that takes so long is the last one."""
LEAST_S = 1e-3


def measure(device: Device, clock: Callable[[], float] = time.perf_counter) -> dict[str, int]:
    """Bytes per second each way and microseconds of delay. Raises EnrollError.

    Never more than 11 MB, and about two seconds each way on any link.
    """
    with device.link() as link:

        def timed(up: int, down: int) -> float:
            body = os.urandom(up)  # nothing on the way can make it smaller
            path = f"/v1/enroll/speed/{down}"
            headers = device.sealed("POST", path, body)
            begun = clock()
            link.fetch(path, body, headers, down)
            return clock() - begun

        timed(0, 0)  # opens the connection
        delay = statistics.median(timed(0, 0) for _ in range(3))

        def rate(up: int, down: int) -> int:
            took = timed(up, down)
            size = max(up, down)
            if took < ENOUGH_S and size < SIZES[-1]:
                return rate(4 * up, 4 * down)
            return max(1, round(size / max(LEAST_S, took - delay)))

        return {
            "uplink_bytes_per_s": rate(SIZES[0], 0),
            "downlink_bytes_per_s": rate(0, SIZES[0]),
            "latency_us": round(delay * 1e6),
        }
