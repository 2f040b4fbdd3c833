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
    """`fedhet serve`: serve the federation until SIGINT or SIGTERM. Raises typer.Exit with the code of an
    EnrollError."""
    close_memory()
    log_to_terminal()
    with contextlib.ExitStack() as stack:
        stack.enter_context(spoken(as_json))
        federation = Federation(home)
        stack.enter_context(alone(home / LOCK, "serves it"))  # before files of a server that runs already are touched
        endpoint = federation.authority.about.endpoint
        listen_port = int(endpoint.rpartition(":")[2]) if port is None else port
        server = Server(federation, host, listen_port, insecure, trusted)
        server.check_port()
        if federation.authority.lock.exists:
            federation.authority.lock.open(obtain(passphrase))
        else:
            print(UNENCRYPTED % (home / "ca"), file=sys.stderr)
        values = {
            "endpoint": endpoint,
            "listening": f"{host}:{listen_port}",
            "superlink": str(server.superlink.socket),
        }
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, lambda *_: None)  # uvicorn stops on them, then raises them again
        say(as_json, values, f"serving {endpoint} on {host}:{listen_port}; SuperLink on {server.superlink.socket}")
        server.run()
