"""How many connections this process may have: its limit of open files."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("fedhet.federation")


RESERVED = 256
"""Open files that are neither a device's connection nor the connection to the SuperLink that serves it."""


def open_files(wanted: int) -> int:
    """Raise this process's limit of open files for `wanted` connections, as far as the hard limit allows; returns how
    many connections fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 2 * wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted
    allowed = max(16, (soft - RESERVED) // 2)
    log.warning("%d open files are allowed (ulimit -n), so %d connections and not %d", soft, allowed, wanted)
    return allowed
