"""Bandwidth of a device's link to its server, measured by sending and fetching bytes over the enrolment API.

Blocks grow by a factor of four until one takes long enough compared with the latency, which is measured first and
subtracted:

    bytes per second = block / (seconds of the block - seconds of an empty request)
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from fedhet.federation.device.state import Device

SIZES = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Sizes of the blocks, in bytes. The server refuses larger ones."""
ENOUGH_S = 0.4
"""Seconds: a block that takes as long is the last one."""
MIN_S = 1e-3


def measure(device: Device, clock: Callable[[], float] = time.perf_counter) -> dict[str, int]:
    """Measure bytes per second each way, and the round-trip time in microseconds. Raises EnrollError.

    Transfers at most 11 MB, for about two seconds each way on any link.
    """
    with device.link() as link:

        def timed(up: int, down: int) -> float:
            body = os.urandom(up)  # incompressible
            path = f"/v1/enroll/speed/{down}"
            headers = device.sealed("POST", path, body)
            begun = clock()
            link.fetch(path, body, headers, down)
            return clock() - begun

        timed(0, 0)  # opens the connection
        delay = statistics.median(timed(0, 0) for _ in range(3))

        def rate(up: int, down: int) -> int:
            seconds = timed(up, down)
            size = max(up, down)
            if seconds < ENOUGH_S and size < SIZES[-1]:
                return rate(4 * up, 4 * down)
            return max(1, round(size / max(MIN_S, seconds - delay)))

        return {
            "uplink_bytes_per_s": rate(SIZES[0], 0),
            "downlink_bytes_per_s": rate(0, SIZES[0]),
            "latency_us": round(delay * 1e6),
        }
