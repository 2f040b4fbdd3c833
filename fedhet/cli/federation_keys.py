"""`fedhet ca` and `fedhet audit`: a federation's keys, certificates and audit log. Signatures only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhet.cli.client import Json
from fedhet.cli.options import HOME, Home, PassphraseFile, Yes

ca = typer.Typer(help="The federation's certificates.", no_args_is_help=True)


audit = typer.Typer(help="The audit log: what was done, and whether the log is intact.", no_args_is_help=True)


@ca.command("init")
def ca_init(
    endpoint: Annotated[str, typer.Option("--endpoint", help="host:port at which devices reach the server.")],
    federation: Annotated[str, typer.Option("--federation", help="Its name.")] = "federation",
    host: Annotated[list[str] | None, typer.Option("--host", help="A further name or address of the server.")] = None,
    passphrase_file: PassphraseFile = None,
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase/--no-passphrase", help="Whether the keys are encrypted; if not, a warning is shown."
        ),
    ] = True,
    root: Annotated[Path | None, typer.Option("--root", help="Root certificate of an authority of your own.")] = None,
    signer: Annotated[str, typer.Option("--signer", help="Its signer command: reads a request, prints a chain.")] = "",
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Create a federation: root, issuing key, server certificate; prints the root's fingerprint."""
    from fedhet.federation.server import ca_commands

    ca_commands.ca_init(home, federation, endpoint, host or [], passphrase_file, passphrase, root, signer, json)


@ca.command("passphrase")
def ca_passphrase(
    passphrase_file: PassphraseFile = None,
    new: Annotated[Path | None, typer.Option("--new-passphrase-file", help="The new one (default: a prompt).")] = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Encrypt the keys, or change the passphrase. After an interruption, repeat it with the same two passphrases."""
    from fedhet.federation.server import ca_commands

    ca_commands.ca_passphrase(home, passphrase_file, new, json)


@ca.command("rotate")
def ca_rotate(
    root: Annotated[
        bool, typer.Option("--root", help="Replace the root as well; the old one signs the new one.")
    ] = False,
    compromised: Annotated[
        bool,
        typer.Option("--compromised", help="The earlier issuing keys were stolen: devices will refuse them."),
    ] = False,
    days: Annotated[float, typer.Option("--days", help="Validity of the new issuing key.", min=1, max=3650)] = 90.0,
    passphrase_file: PassphraseFile = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="root.key has another one: ask, or take FEDHET_ROOT_PASSPHRASE.")
    ] = False,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Replace the issuing key; certificates of the old one stay valid until they expire, unless --compromised."""
    from fedhet.federation.server import ca_commands

    ca_commands.ca_rotate(home, root, compromised, days, passphrase_file, passphrase, json)


@ca.command("rotate-operator")
def ca_rotate_operator(
    compromised: Annotated[
        bool,
        typer.Option("--compromised", help="The present key was stolen or lost: root.key signs the new one."),
    ] = False,
    passphrase_file: PassphraseFile = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="root.key has another one: ask, or take FEDHET_ROOT_PASSPHRASE.")
    ] = False,
    yes: Yes = False,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Replace the key that signs run configurations; devices accept the new key through the present one or the root."""
    from fedhet.federation.server import ca_commands

    ca_commands.ca_rotate_operator(home, compromised, passphrase_file, passphrase, yes, json)


@ca.command("export-crl")
def ca_crl(
    out: Annotated[Path, typer.Option("--out", "-o")],
    passphrase_file: PassphraseFile = None,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Write the signed revocation list for third parties."""
    from fedhet.federation.server import ca_commands

    ca_commands.ca_crl(home, out, passphrase_file, json)


@audit.command("verify")
def audit_verify(
    head: Annotated[str, typer.Option("--head", help="A head printed earlier, which the log must still contain.")] = "",
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Verify every line of the audit log, and every client against it; names the first fault."""
    from fedhet.federation.server import audit_commands

    audit_commands.audit_verify(home, head, json)


@audit.command("rekey")
def audit_rekey(
    reason: Annotated[str, typer.Option("--reason", help="Why the key is lost; stored in the log.")] = "",
    yes: Yes = False,
    home: Home = HOME,
    json: Json = False,
) -> None:
    """Continue with a new key after audit.key was lost or damaged; shows what can no longer be verified."""
    from fedhet.federation.server import audit_commands

    audit_commands.audit_rekey(home, reason, yes, json)


@audit.command("show")
def audit_show(home: Home = HOME, json: Json = False) -> None:
    """Print the audit log."""
    from fedhet.federation.server import audit_commands

    audit_commands.audit_show(home, json)
