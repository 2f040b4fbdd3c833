"""Commands of who runs a federation of real clients: `mount` hangs them, and a device's (fedhet/cli/client.py), under
`fedhet`. Signatures only; the work is in fedhet/federation.

A refusal is one line on standard error, or with --json one object on standard output, and the exit code of its error
(fedhet/federation/common/errors.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhet.cli import client
from fedhet.cli.client import Json, at_home

Home = Annotated[
    Path,
    typer.Option("--home", envvar="FEDHET_HOME", help="The federation's folder.", callback=at_home("FEDHET_HOME")),
]
Name = Annotated[str, typer.Argument(help="A client's name or node id.")]
Reason = Annotated[str, typer.Option("--reason", help="Kept in the registry and the audit log; told to the device.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="As for `fedhet run`: strategy=fedbuff seed=3.", show_default=False),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a submitted run.")]
WaitFor = Annotated[
    int | None,
    typer.Option("--wait-for", help="Begin when so many clients are there (default: those online now).", min=1),
]
OnInterrupt = Annotated[str, typer.Option("--on-interrupt", help="What Ctrl-C does: ask, detach or stop.")]

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="FEDHET_PASSPHRASE_FILE",
        show_default=False,
        help="The passphrase of the federation's keys (default: FEDHET_PASSPHRASE, else it is asked for).",
    ),
]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether it is meant.")]

HOME = Path("~/.fedhet/federation")

ca = typer.Typer(help="The federation's certificates.", no_args_is_help=True)
enroll = typer.Typer(help="Who may join.", no_args_is_help=True)
clients = typer.Typer(help="Who has joined.", no_args_is_help=True)
audit = typer.Typer(help="What was done, and whether the log is whole.", no_args_is_help=True)


def mount(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for name, group in (("ca", ca), ("enroll", enroll), ("clients", clients), ("audit", audit)):
        app.add_typer(group, name=name)
    app.command("serve")(serve)
    app.command("submit")(submit)
    app.command("follow")(follow)
    app.command("stop")(stop)
    client.mount(app)


@ca.command("init")
def ca_init(
    endpoint: Annotated[str, typer.Option("--endpoint", help="host:port at which devices reach the server.")],
    federation: Annotated[str, typer.Option("--federation", help="Its name.")] = "federation",
    host: Annotated[list[str] | None, typer.Option("--host", help="A further name or address of the server.")] = None,
    passphrase_file: PassphraseFile = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase/--no-passphrase", help="Whether the keys lie encrypted; if not, it says so.")
    ] = True,
    root: Annotated[Path | None, typer.Option("--root", help="Root certificate of an authority of your own.")] = None,
    signer: Annotated[str, typer.Option("--signer", help="Its command: a request in, a chain out.")] = "",
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Found a federation: root, issuing key, server certificate; prints the root's fingerprint."""
    from fedhet.federation.server import commands

    commands.ca_init(home, federation, endpoint, host or [], passphrase_file, passphrase, root, signer, json)


@ca.command("passphrase")
def ca_passphrase(
    passphrase_file: PassphraseFile = None,
    new: Annotated[
        Path | None, typer.Option("--new-passphrase-file", help="The new one (default: it is asked for).")
    ] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Encrypt keys that are not, or change the passphrase. Repeat it with the same two if it was interrupted."""
    from fedhet.federation.server import commands

    commands.ca_passphrase(home, passphrase_file, new, json)


@ca.command("rotate")
def ca_rotate(
    root: Annotated[bool, typer.Option("--root", help="The root as well; the old one signs the new one.")] = False,
    compromised: Annotated[
        bool,
        typer.Option("--compromised", help="The earlier issuing keys were stolen: devices are to refuse them."),
    ] = False,
    days: Annotated[float, typer.Option("--days", help="How long the new issuing key holds.", min=1, max=3650)] = 90.0,
    passphrase_file: PassphraseFile = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="root.key has another one: ask, or take FEDHET_ROOT_PASSPHRASE.")
    ] = False,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Replace the issuing key; certificates of the old one hold until they expire, unless it was stolen."""
    from fedhet.federation.server import commands

    commands.ca_rotate(home, root, compromised, days, passphrase_file, passphrase, json)


@ca.command("rotate-operator")
def ca_rotate_operator(
    compromised: Annotated[
        bool,
        typer.Option("--compromised", help="The present key was stolen or lost: root.key names the new one."),
    ] = False,
    passphrase_file: PassphraseFile = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="root.key has another one: ask, or take FEDHET_ROOT_PASSPHRASE.")
    ] = False,
    yes: Yes = False,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Replace the key that signs what devices build; they follow from the present key, or from the root, to the new."""
    from fedhet.federation.server import commands

    commands.ca_rotate_operator(home, compromised, passphrase_file, passphrase, yes, json)


@ca.command("export-crl")
def ca_crl(
    out: Annotated[Path, typer.Option("--out", "-o")],
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Write the signed revocation list for third parties."""
    from fedhet.federation.server import commands

    commands.ca_crl(home, out, passphrase_file, json)


@enroll.command("invite")
def enroll_invite(
    name: Annotated[str, typer.Option("--name", help="The client's name (default: made up).")] = "",
    device_class: Annotated[str, typer.Option("--class", help="A class of the policy: edge or silo.")] = "edge",
    hours: Annotated[float | None, typer.Option("--hours", help="How long the token can be used.", min=0.01)] = None,
    count: Annotated[int, typer.Option("--count", help="Make several, without --name.", min=1)] = 1,
    owner: Annotated[str, typer.Option("--owner", help="Whose they are; one owner has at most so many.")] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Kept with the client.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write name,token lines to this CSV file.")] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Make a token: one line to paste at the device, good for one of them, once."""
    from fedhet.federation.server import commands

    commands.invite(home, name, device_class, hours, count, owner, label or [], out, json)


@enroll.command("pending")
def enroll_pending(home: Home = HOME, json: Json = False) -> None:
    """Show the devices that wait."""
    from fedhet.federation.server import commands

    commands.list_clients(home, ("pending",), json)


@enroll.command("approve")
def enroll_approve(
    names: Annotated[list[str], typer.Argument()],
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Let devices in."""
    from fedhet.federation.server import commands

    commands.approve(home, names, passphrase_file, json)


@enroll.command("reject")
def enroll_reject(name: Name, reason: Reason, home: Home = HOME, json: Json = False) -> None:
    """Refuse a device."""
    from fedhet.federation.server import commands

    commands.change(home, "reject", name, reason, json)


@enroll.command("sign")
def enroll_sign(
    request: Annotated[Path, typer.Argument(help="What `fedhet client request` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The answer to carry back.")],
    name: Annotated[str, typer.Option("--name")] = "",
    device_class: Annotated[str, typer.Option("--class")] = "edge",
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Let a device in that has no path to the server: a request file in, an answer file out."""
    from fedhet.federation.server import commands

    commands.sign(home, request, out, name, device_class, passphrase_file, json)


@clients.command("list")
def clients_list(
    state: Annotated[list[str] | None, typer.Option("--state", help="Only clients in this state.")] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Show the clients: declared, measured and observed, kept apart."""
    from fedhet.federation.server import commands

    commands.list_clients(home, tuple(state or ()), json)


@clients.command("show")
def clients_show(name: Name, home: Home = HOME, json: Json = False) -> None:
    """Show all that is known of one client."""
    from fedhet.federation.server import commands

    commands.show(home, name, json)


@clients.command("weight")
def clients_weight(
    name: Name,
    examples: Annotated[
        int | None, typer.Option("--examples", help="So many (default: what it declares now).", min=0)
    ] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Approve how many examples a client counts with; it cannot raise that by itself."""
    from fedhet.federation.server import commands

    commands.weight(home, name, examples, json)


@clients.command("suspend")
def clients_suspend(name: Name, reason: Reason = "", home: Home = HOME, json: Json = False) -> None:
    """Shut a client out until it is resumed."""
    from fedhet.federation.server import commands

    commands.change(home, "suspend", name, reason, json)


@clients.command("resume")
def clients_resume(name: Name, home: Home = HOME, json: Json = False) -> None:
    """Let a suspended client in again."""
    from fedhet.federation.server import commands

    commands.change(home, "resume", name, "", json)


@clients.command("revoke")
def clients_revoke(name: Name, reason: Reason, home: Home = HOME, json: Json = False) -> None:
    """End a client for good, from its next message on."""
    from fedhet.federation.server import commands

    commands.change(home, "revoke", name, reason, json)


@audit.command("verify")
def audit_verify(
    head: Annotated[str, typer.Option("--head", help="A head printed earlier, which the log must hold still.")] = "",
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Check every line of the audit log, and every client against it; names the first that is not in order."""
    from fedhet.federation.server import commands

    commands.audit_verify(home, head, json)


@audit.command("rekey")
def audit_rekey(
    reason: Annotated[str, typer.Option("--reason", help="Why the key is lost; kept in the log.")] = "",
    yes: Yes = False,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Go on with a new key after audit.key was lost or damaged; says what is found, and what is not proved any more."""
    from fedhet.federation.server import commands

    commands.audit_rekey(home, reason, yes, json)


@audit.command("show")
def audit_show(home: Home = HOME, json: Json = False) -> None:
    """Print the audit log."""
    from fedhet.federation.server import commands

    commands.audit_show(home, json)


def serve(
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "0.0.0.0",
    port: Annotated[int | None, typer.Option("--port", help="Default: the endpoint's.")] = None,
    flower_port: Annotated[int | None, typer.Option("--flower-port", hidden=True)] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS: a proxy on this machine ends it. Loopback only.")
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option("--trusted-proxy", metavar="ADDR[/BITS]", help="Believe its X-Forwarded-For (default: nobody's)."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Serve the federation: SuperLink behind a socket file, enrolment and Fleet API behind one TLS port."""
    from fedhet.federation.server import commands

    if flower_port is not None:
        typer.echo("--flower-port has no effect any more: the SuperLink has a socket file and no port", err=True)
    commands.serve(home, host, port, insecure, trusted_proxy or [], passphrase_file, json)


def submit(
    overrides: Overrides = None,
    wait_for: WaitFor = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start the run and come back at once.")] = False,
    on_interrupt: OnInterrupt = "ask",
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
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
    """Follow a run that was submitted, to its end."""
    from fedhet.cli import submit as cli_submit

    cli_submit.follow(folder, on_interrupt, json)


def stop(folder: RunFolder, json: Json = False) -> None:
    """Stop a run that was submitted; `fedhet submit --resume` goes on with it."""
    from fedhet.cli import submit as cli_submit

    cli_submit.stop(folder, json)
