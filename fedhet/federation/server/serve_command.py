"""The command `fedhet serve`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fedhet.display import log_to_terminal
from fedhet.federation.common.exclusive import alone
from fedhet.federation.common.output import say, spoken
from fedhet.federation.common.process_supervisor import close_memory
from fedhet.federation.pki.passphrase import obtain
from fedhet.federation.server.command_context import UNENCRYPTED
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.serve import LOCK, Server


def serve(
    home: Path, host: str, port: int | None, insecure: bool, trusted: Sequence[str], passphrase: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Serve until interrupted."""
    close_memory()
    log_to_terminal()
    with contextlib.ExitStack() as stack:
        stack.enter_context(spoken(as_json))
        federation = Federation(home)
        stack.enter_context(alone(home / LOCK, "serves it"))  # before anything of the first server's is touched
        endpoint = federation.authority.about.endpoint
        own = int(endpoint.rpartition(":")[2]) if port is None else port
        server = Server(federation, host, own, insecure, trusted)
        server.check_port()
        if federation.authority.lock.exists:
            federation.authority.lock.open(obtain(passphrase))
        else:
            print(UNENCRYPTED % (home / "ca"), file=sys.stderr)
        told = {"endpoint": endpoint, "listening": f"{host}:{own}", "superlink": str(server.superlink.socket)}
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda *_: None)  # uvicorn ends on them, then raises them again for us
        say(as_json, told, f"serving {endpoint} on {host}:{own}; SuperLink on {server.superlink.socket}")
        server.run()
