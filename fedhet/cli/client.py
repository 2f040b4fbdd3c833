"""Commands of a device: `fedhet join` and `fedhet client ...`, added to the command line by `mount`. Signatures and
help texts only; the code is in fedhet/federation/device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedhet.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]


def at_home(variable: str) -> Callable[[Path], Path]:
    """An option callback that expands a leading `~` when the command runs.

    The callback raises InputError if there is no home folder, naming the environment variable to set instead.
    """

    def expand(path: Path) -> Path:
        try:
            return path.expanduser()
        except RuntimeError:
            raise InputError(f"{path}: this user has no home folder: set {variable} or HOME") from None

    return expand


State = Annotated[
    Path,
    typer.Option("--state", envvar="FEDHET_CLIENT", help="This client's folder.", callback=at_home("FEDHET_CLIENT")),
]
DataPath = Annotated[
    str, typer.Option("--data", help="Where this device's data are; the path is not sent to the server.")
]
Partition = Annotated[
    str, typer.Option("--partition", metavar="K/N", help="Which part of a common data set this device has.")
]
Examples = Annotated[int, typer.Option("--examples", help="Number of training examples.", min=0)]
Labels = Annotated[Path | None, typer.Option("--labels", help="JSON file of examples by label.")]
Seconds = Annotated[float, typer.Option("--benchmark", help="Duration of the benchmark in seconds; 0 skips it.", min=0)]

STATE = Path("~/.fedhet/client")

client = typer.Typer(help="This device as a client.", no_args_is_help=True)


def mount(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(client, name="client")
    app.command("join")(join)


def join(
    token: Annotated[str, typer.Argument(help="The token, or - to read it from standard input.")],
    name: Annotated[str, typer.Option("--name", help="Join only if the invitation is for this name.")] = "",
    data: DataPath = "",
    partition: Partition = "",
    examples: Examples = 0,
    labels: Labels = None,
    benchmark: Seconds = 3.0,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for approval.", min=0)] = 3600.0,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Make this device a client: verify the server, generate keys, measure, apply, wait for approval."""
    from fedhet.federation.device import commands

    commands.join(state, token, name, (data, partition, examples, labels), benchmark, wait, json)


@client.command("poll")
def client_poll(state: State = STATE, json: Json = False) -> None:
    """Ask for the state of the application."""
    from fedhet.federation.device import commands

    commands.poll(state, json)


@client.command("run")
def client_run(
    flower: Annotated[
        bool, typer.Option("--flower", help="Flower's own SuperNode, which runs any app that the server sends.")
    ] = False,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="PACKAGE", help="A package whose classes jobs may use.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="DIR", help="A folder from which jobs may read.")
    ] = None,
    hub: Annotated[
        list[str] | None, typer.Option("--hub", metavar="ID", help="A data set or model that jobs may download.")
    ] = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Work for the federation until interrupted.

    --allow, --data and --hub can be repeated. Their values are stored for later starts and replace earlier ones; ""
    clears them. Jobs may always use fedhet's own plug-ins and the data that the device joined with.
    """
    from fedhet.federation.device import commands

    commands.run(state, flower, (allow, data, hub), json)


@client.command("doctor")
def client_doctor(state: State = STATE, json: Json = False) -> None:
    """Check everything that this device needs, and print problems with their remedies."""
    from fedhet.federation.device import commands

    commands.doctor(state, json)


@client.command("profile")
def client_profile(
    benchmark: Seconds = 3.0,
    send: Annotated[
        bool, typer.Option("--send/--no-send", help="Send it to the server, and measure the link to it.")
    ] = True,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Measure this machine and its link to the server again."""
    from fedhet.federation.device import commands

    commands.profile(state, benchmark, send, json)


@client.command("renew")
def client_renew(state: State = STATE, json: Json = False) -> None:
    """Get a new certificate for a new key."""
    from fedhet.federation.device import commands

    commands.renew(state, json)


@client.command("rotate")
def client_rotate(state: State = STATE, json: Json = False) -> None:
    """Replace all keys; the client stays the same, and the old keys are revoked."""
    from fedhet.federation.device import commands

    commands.rotate(state, json)


@client.command("leave")
def client_leave(
    purge: Annotated[bool, typer.Option("--purge", help="Delete the keys and all state as well.")] = False,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Leave the federation for good."""
    from fedhet.federation.device import commands

    commands.leave(state, purge, json)


@client.command("request")
def client_request(
    out: Annotated[Path, typer.Option("--out", "-o", help="The request file to take to the operator.")],
    name: Annotated[str, typer.Option("--name")] = "",
    data: DataPath = "",
    partition: Partition = "",
    examples: Examples = 0,
    labels: Labels = None,
    benchmark: Seconds = 3.0,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Apply without a connection to the server: write a request file."""
    from fedhet.federation.device import commands

    commands.request(state, out, name, (data, partition, examples, labels), benchmark, json)


@client.command("import")
def client_import(
    answer: Annotated[Path, typer.Argument(help="What `fedhet enroll sign` wrote.")],
    root_fingerprint: Annotated[
        str, typer.Option("--root-fingerprint", help="SHA-256 of the root, from the operator over another channel.")
    ],
    state: State = STATE,
    json: Json = False,
) -> None:
    """Import the operator's answer to a request file."""
    from fedhet.federation.device import commands

    commands.import_(state, answer, root_fingerprint, json)


@client.command("service")
def client_service(state: State = STATE, json: Json = False) -> None:
    """Print a systemd unit that runs this client at boot."""
    from fedhet.federation.device import commands

    commands.service(state, json)
