"""Commands of a federation: `mount` adds those of the operator and of a device (fedhet/cli/client.py) to the command
line. Signatures and help texts only; the code is in fedhet/federation.

An error is one line on standard error, or with --json one object on standard output, and has its own exit code
(fedhet/federation/common/errors.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhet.cli import client
from fedhet.cli.client import Json
from fedhet.cli.federation_clients import clients, enroll
from fedhet.cli.federation_keys import audit, ca
from fedhet.cli.options import HOME, Home, PassphraseFile

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="As for `fedhet run`: strategy=fedbuff seed=3.", show_default=False),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a submitted run.")]
WaitFor = Annotated[
    int | None,
    typer.Option("--wait-for", help="Begin when this many clients have answered (default: those online now).", min=1),
]
OnInterrupt = Annotated[str, typer.Option("--on-interrupt", help="What Ctrl-C does: ask, detach or stop.")]


def mount(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for name, group in (("ca", ca), ("enroll", enroll), ("clients", clients), ("audit", audit)):
        app.add_typer(group, name=name)
    app.command("serve")(serve)
    app.command("submit")(submit)
    app.command("follow")(follow)
    app.command("stop")(stop)
    client.mount(app)


def serve(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "0.0.0.0",
    port: Annotated[int | None, typer.Option("--port", help="Default: the endpoint's.")] = None,
    flower_port: Annotated[int | None, typer.Option("--flower-port", hidden=True)] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS: a proxy on this machine terminates it. Loopback only.")
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option("--trusted-proxy", metavar="ADDR[/BITS]", help="Trust its X-Forwarded-For (default: nobody's)."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Serve the federation: SuperLink behind a socket file, enrolment and Fleet API behind one TLS port."""
    from fedhet.federation.server import serve_command

    if flower_port is not None:
        typer.echo("--flower-port has no effect any more: the SuperLink has a socket file and no port", err=True)
    serve_command.serve(home, host, port, insecure, trusted_proxy or [], passphrase_file, json)


def submit(
    overrides: Overrides = None,
    wait_for: WaitFor = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start the run and return at once.")] = False,
    on_interrupt: OnInterrupt = "ask",
    resume: Annotated[Path | None, typer.Option("--resume", help="Continue the run in this folder.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write (default: a new one in runs).")] = None,
    config_dir: Annotated[Path | None, typer.Option("--config-dir", help="A folder with more options.")] = None,
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Run a method on the clients that are online, and follow it; the last line printed is its folder."""
    from fedhet.cli import submit as cli_submit

    cli_submit.submit(
        home, overrides or [], wait_for, detach, on_interrupt, resume, out, config_dir, passphrase_file, json
    )


def follow(folder: RunFolder, on_interrupt: OnInterrupt = "ask", json: Json = False) -> None:
    """Follow a submitted run to its end."""
    from fedhet.cli import submit as cli_submit

    cli_submit.follow(folder, on_interrupt, json)


def stop(folder: RunFolder, json: Json = False) -> None:
    """Stop a submitted run; `fedhet submit --resume` continues it."""
    from fedhet.cli import submit as cli_submit

    cli_submit.stop(folder, json)
