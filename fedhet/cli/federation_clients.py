"""`fedhet enroll` and `fedhet clients`: who may join a federation and who has joined. Signatures only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhet.cli.client import Json
from fedhet.cli.options import HOME, Home, Name, PassphraseFile, Reason

enroll = typer.Typer(help="Who may join.", no_args_is_help=True)


clients = typer.Typer(help="Who has joined.", no_args_is_help=True)


@enroll.command("invite")
def enroll_invite(
    name: Annotated[str, typer.Option("--name", help="The client's name (default: generated).")] = "",
    device_class: Annotated[str, typer.Option("--class", help="A class of the policy: edge or silo.")] = "edge",
    hours: Annotated[float | None, typer.Option("--hours", help="Validity of the token.", min=0.01)] = None,
    count: Annotated[int, typer.Option("--count", help="Number of tokens, without --name.", min=1)] = 1,
    owner: Annotated[str, typer.Option("--owner", help="Their owner; the policy limits the clients of one.")] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label to store with the client.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write name,token lines to this CSV file.")] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Create a token: one line to paste on the device, for one device and one use."""
    from fedhet.federation.server import client_commands

    client_commands.invite(home, name, device_class, hours, count, owner, label or [], out, json)


@enroll.command("pending")
def enroll_pending(home: Home = HOME, json: Json = False) -> None:
    """Show the devices that wait for approval."""
    from fedhet.federation.server import client_commands

    client_commands.list_clients(home, ("pending",), json)


@enroll.command("approve")
def enroll_approve(
    names: Annotated[list[str], typer.Argument()],
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Approve pending devices."""
    from fedhet.federation.server import client_commands

    client_commands.approve(home, names, passphrase_file, json)


@enroll.command("reject")
def enroll_reject(name: Name, reason: Reason, home: Home = HOME, json: Json = False) -> None:
    """Reject a pending device."""
    from fedhet.federation.server import client_commands

    client_commands.change(home, "reject", name, reason, json)


@enroll.command("sign")
def enroll_sign(
    request: Annotated[Path, typer.Argument(help="What `fedhet client request` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The answer file to take back to the device.")],
    name: Annotated[str, typer.Option("--name")] = "",
    device_class: Annotated[str, typer.Option("--class")] = "edge",
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Approve a device that has no connection to the server: reads a request file, writes an answer file."""
    from fedhet.federation.server import client_commands

    client_commands.sign(home, request, out, name, device_class, passphrase_file, json)


@clients.command("list")
def clients_list(
    state: Annotated[list[str] | None, typer.Option("--state", help="Only clients in this state.")] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Show the clients with their declared, measured and observed profiles."""
    from fedhet.federation.server import client_commands

    client_commands.list_clients(home, tuple(state or ()), json)


@clients.command("show")
def clients_show(name: Name, home: Home = HOME, json: Json = False) -> None:
    """Show all that is stored about one client."""
    from fedhet.federation.server import client_commands

    client_commands.show(home, name, json)


@clients.command("weight")
def clients_weight(
    name: Name,
    examples: Annotated[
        int | None, typer.Option("--examples", help="Number of examples (default: what it declares now).", min=0)
    ] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Approve the number of examples that a client is weighted with; it cannot raise that itself."""
    from fedhet.federation.server import client_commands

    client_commands.weight(home, name, examples, json)


@clients.command("suspend")
def clients_suspend(name: Name, reason: Reason = "", home: Home = HOME, json: Json = False) -> None:
    """Suspend a client until it is resumed."""
    from fedhet.federation.server import client_commands

    client_commands.change(home, "suspend", name, reason, json)


@clients.command("resume")
def clients_resume(name: Name, home: Home = HOME, json: Json = False) -> None:
    """Make a suspended client active again."""
    from fedhet.federation.server import client_commands

    client_commands.change(home, "resume", name, "", json)


@clients.command("revoke")
def clients_revoke(name: Name, reason: Reason, home: Home = HOME, json: Json = False) -> None:
    """Revoke a client for good, effective at its next message."""
    from fedhet.federation.server import client_commands

    client_commands.change(home, "revoke", name, reason, json)
