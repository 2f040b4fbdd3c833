"""The operator's commands on keys and certificates: `fedhet ca ...`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.output import confirm, say, spoken
from fedhet.federation.pki import operator_key
from fedhet.federation.pki.passphrase import obtain
from fedhet.federation.server.command_context import UNENCRYPTED, day, opened
from fedhet.federation.server.operator import Federation, me

DEVICES_FOLLOW = (
    "devices accept the new key with their next job or the server's next answer, and then refuse orders signed by the "
    "earlier key: sign unfinished runs again with fedhet submit --resume RUN_DIR"
)


def ca_init(
    home: Path, federation: str, endpoint: str, hosts: Sequence[str], passphrase: Path | None, encrypted: bool,
    root: Path | None, signer: str, as_json: bool,
) -> None:  # fmt: skip
    """`fedhet ca init`: create a federation. Raises typer.Exit with the code of an EnrollError, as all commands do."""
    with spoken(as_json):
        if encrypted and (home / "ca" / "ca.json").exists():  # before the passphrase is asked for
            raise EnrollError("E306", f"{home / 'ca'} already contains an authority")
        secret = _new_passphrase(passphrase) if encrypted else ""
        created = Federation.create(
            home, federation, endpoint, hosts, passphrase=secret, root=root, signer=shlex.split(signer)
        )
        fingerprint = created.authority.fingerprint
        created.close()
        values = {"federation": federation, "endpoint": endpoint, "root_sha256": fingerprint, "folder": str(home)}
        if not encrypted:
            print(UNENCRYPTED % (home / "ca"), file=sys.stderr)
        keep = "" if root else f"keep {home / 'ca' / 'root.key'} off this machine; only `fedhet ca rotate` needs it"
        say(
            as_json,
            values,
            f"federation {federation} at {endpoint}",
            f"root SHA-256 {fingerprint}",
            *([keep] if keep else []),
        )


def _new_passphrase(passphrase: Path | None) -> str:
    """A new passphrase. Raises EnrollError E322, whose message names --no-passphrase as the alternative."""
    try:
        return obtain(passphrase, what="A passphrase for the keys", again=True)
    except EnrollError as error:
        if error.code != "E322":
            raise
        raise EnrollError("E322", f"{error.detail}; or --no-passphrase leaves them readable") from None


def ca_passphrase(home: Path, passphrase: Path | None, new: Path | None, as_json: bool) -> None:
    """`fedhet ca passphrase`: encrypt the keys, or change their passphrase."""
    with opened(home, as_json) as federation:
        authority, clear = federation.authority, not federation.authority.lock.exists
        federation.audit.check_writable()
        old = obtain(passphrase, what="The present passphrase") if authority.needs_passphrase else ""
        given = obtain(new, what="The new passphrase", again=True, variable="FEDHET_NEW_PASSPHRASE")
        done = authority.encrypt(old, given)
        federation.audit.append(me(), "passphrase", "", files=done)
        away = "root.key" not in done and not authority.about.signer
        say(as_json, {"files": done}, f"encrypted: {', '.join(done)}",
            *(["root.key is stored elsewhere: its passphrase is unchanged"] if away else []),
            *(["copies and backups made before hold the keys in the clear: replace them with fedhet ca rotate",
               "restart fedhet serve, which cannot read them now"] if clear else []))  # fmt: skip


def _root_passphrase(own: bool, key_passphrase: str) -> str:
    """The passphrase of root.key: a separate one if `own`, else that of the other keys."""
    return obtain(None, what="Passphrase of root.key", variable="FEDHET_ROOT_PASSPHRASE") if own else key_passphrase


def ca_rotate(
    home: Path, root: bool, compromised: bool, days: float, passphrase: Path | None, own: bool, as_json: bool
) -> None:
    """`fedhet ca rotate`: replace the issuing key, or root and issuing key. `compromised` makes devices refuse the
    earlier issuing keys."""
    with opened(home, as_json) as federation:
        federation.audit.check_writable()
        key_passphrase = obtain(passphrase) if federation.authority.needs_passphrase else ""
        federation.authority.lock.ask = lambda: key_passphrase
        secret = _root_passphrase(own, key_passphrase)
        if root:
            federation.authority.rotate_root(time.time(), secret, compromised=compromised)
            fingerprint = federation.authority.fingerprint
            federation.audit.append(me(), "rotate", "root", root=fingerprint, compromised=compromised)
            say(as_json, {"root_sha256": fingerprint}, f"new root, signed by the old one; SHA-256 {fingerprint}",
                "devices receive it with the server's next answer; restart fedhet serve now")  # fmt: skip
            return
        created = federation.authority.rotate(time.time(), secret, compromised=compromised, days=days)
        serial = f"{created.serial_number:x}"
        federation.audit.append(me(), "rotate", "issuing", serial=serial, compromised=compromised)
        until = day(created.not_valid_after_utc.timestamp())
        notes = ["devices refuse the earlier ones as soon as they get an answer from this federation's server",
                "a device that cannot reach it accepts them until they expire; also revoke clients with stolen keys",
                ] if compromised else []  # fmt: skip
        say(as_json, {"serial": serial, "not_after": until, "compromised": compromised},
            f"new issuing key, good until {until}", *notes)  # fmt: skip


def ca_rotate_operator(
    home: Path, compromised: bool, passphrase: Path | None, own: bool, yes: bool, as_json: bool
) -> None:
    """`fedhet ca rotate-operator`: replace the key that signs run configurations. With `compromised`, for a key that
    was stolen or lost, the root signs the new one."""
    with opened(home, as_json) as federation:
        authority = federation.authority
        federation.audit.check_writable()
        by = "the root, in a new term: devices refuse what the earlier keys sign" if compromised else "the present key"
        confirm(yes, as_json, f"a new operator key, signed by {by}", DEVICES_FOLLOW)
        key_passphrase = (
            obtain(passphrase) if (authority.needs_passphrase if compromised else authority.lock.exists) else ""
        )
        authority.lock.ask = lambda: key_passphrase
        root = authority.root_pair(_root_passphrase(own, key_passphrase)) if compromised else None
        newest = operator_key.replace(authority, root)[-1]
        values = {"key_sha256": newest.fingerprint, "term": newest.term, "by": newest.by}
        federation.audit.append(me(), "rotate", "operator", **values, compromised=compromised)
        say(
            as_json,
            values,
            f"new operator key; SHA-256 {newest.fingerprint}",
            *([] if not yes else [DEVICES_FOLLOW]),
        )


def ca_crl(home: Path, out: Path, passphrase: Path | None, as_json: bool) -> None:
    """`fedhet ca export-crl`: write the revocation list."""
    with opened(home, as_json, passphrase) as federation:
        private_files.write_file(out, federation.crl(), 0o644)
        say(as_json, {"file": str(out)}, str(out))
