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

FOLLOWED = (
    "devices follow with their next job or the server's next answer, and then refuse orders of the key before: "
    "sign runs that go on again with fedhet submit --resume RUN_DIR"
)


def ca_init(
    home: Path, federation: str, endpoint: str, hosts: Sequence[str], passphrase: Path | None, encrypted: bool,
    root: Path | None, signer: str, as_json: bool,
) -> None:  # fmt: skip
    """Found a federation."""
    with spoken(as_json):
        if encrypted and (home / "ca" / "ca.json").exists():  # or a passphrase would be asked for in vain
            raise EnrollError("E306", f"{home / 'ca'} holds an authority already")
        secret = _chosen(passphrase) if encrypted else ""
        made = Federation.create(
            home, federation, endpoint, hosts, passphrase=secret, root=root, signer=shlex.split(signer)
        )
        mark = made.authority.fingerprint
        made.close()
        told = {"federation": federation, "endpoint": endpoint, "root_sha256": mark, "folder": str(home)}
        if not encrypted:
            print(UNENCRYPTED % (home / "ca"), file=sys.stderr)
        keep = "" if root else f"keep {home / 'ca' / 'root.key'} off this machine; only `fedhet ca rotate` needs it"
        say(as_json, told, f"federation {federation} at {endpoint}", f"root SHA-256 {mark}", *([keep] if keep else []))


def _chosen(passphrase: Path | None) -> str:
    """A new passphrase. Raises EnrollError E322, which says that there may be none if one wants it so."""
    try:
        return obtain(passphrase, what="A passphrase for the keys", again=True)
    except EnrollError as error:
        if error.code != "E322":
            raise
        raise EnrollError("E322", f"{error.detail}; or --no-passphrase leaves them readable") from None


def ca_passphrase(home: Path, passphrase: Path | None, new: Path | None, as_json: bool) -> None:
    """Encrypt the keys, or give them another passphrase."""
    with opened(home, as_json) as federation:
        authority, clear = federation.authority, not federation.authority.lock.exists
        federation.audit.ready()
        old = obtain(passphrase, what="The present passphrase") if authority.asks else ""
        given = obtain(new, what="The new passphrase", again=True, variable="FEDHET_NEW_PASSPHRASE")
        done = authority.encrypt(old, given)
        federation.audit.append(me(), "passphrase", "", files=done)
        away = "root.key" not in done and not authority.about.signer
        say(as_json, {"files": done}, f"encrypted: {', '.join(done)}",
            *(["root.key is elsewhere: it keeps what passphrase it has"] if away else []),
            *(["copies and backups made before hold the keys in the clear: replace them with fedhet ca rotate",
               "restart fedhet serve, which cannot read them now"] if clear else []))  # fmt: skip


def _of_root(own: bool, opener: str) -> str:
    """The passphrase of root.key: its own, or that of the other keys."""
    return obtain(None, what="Passphrase of root.key", variable="FEDHET_ROOT_PASSPHRASE") if own else opener


def ca_rotate(
    home: Path, root: bool, compromised: bool, days: float, passphrase: Path | None, own: bool, as_json: bool
) -> None:
    """Replace the issuing key, or root and issuing key; have devices refuse the earlier ones if they were stolen."""
    with opened(home, as_json) as federation:
        federation.audit.ready()
        opener = obtain(passphrase) if federation.authority.asks else ""
        federation.authority.lock.ask = lambda: opener
        secret = _of_root(own, opener)
        if root:
            federation.authority.rotate_root(time.time(), secret, compromised=compromised)
            mark = federation.authority.fingerprint
            federation.audit.append(me(), "rotate", "root", root=mark, compromised=compromised)
            say(as_json, {"root_sha256": mark}, f"new root, signed by the old one; SHA-256 {mark}",
                "devices learn it when they next ask; restart fedhet serve now")  # fmt: skip
            return
        made = federation.authority.rotate(time.time(), secret, compromised=compromised, days=days)
        serial = f"{made.serial_number:x}"
        federation.audit.append(me(), "rotate", "issuing", serial=serial, compromised=compromised)
        until = day(made.not_valid_after_utc.timestamp())
        told = ["devices refuse the earlier ones as soon as they get an answer from this federation's server",
                "one that is kept from it does so when they expire; revoke clients whose keys were stolen as well",
                ] if compromised else []  # fmt: skip
        say(as_json, {"serial": serial, "not_after": until, "compromised": compromised},
            f"new issuing key, good until {until}", *told)  # fmt: skip


def ca_rotate_operator(
    home: Path, compromised: bool, passphrase: Path | None, own: bool, yes: bool, as_json: bool
) -> None:
    """Replace the key that signs what devices build; if it was stolen or lost, the root names the new one."""
    with opened(home, as_json) as federation:
        authority = federation.authority
        federation.audit.ready()
        by = "the root, in a new term: devices refuse what the earlier keys sign" if compromised else "the present one"
        confirm(yes, as_json, f"a new operator key, named by {by}", FOLLOWED)
        opener = obtain(passphrase) if (authority.asks if compromised else authority.lock.exists) else ""
        authority.lock.ask = lambda: opener
        root = authority.root_pair(_of_root(own, opener)) if compromised else None
        newest = operator_key.replace(authority, root)[-1]
        told = {"key_sha256": newest.fingerprint, "term": newest.term, "by": newest.by}
        federation.audit.append(me(), "rotate", "operator", **told, compromised=compromised)
        say(as_json, told, f"new operator key; SHA-256 {newest.fingerprint}", *([] if not yes else [FOLLOWED]))


def ca_crl(home: Path, out: Path, passphrase: Path | None, as_json: bool) -> None:
    """Write the revocation list."""
    with opened(home, as_json, passphrase) as federation:
        private_files.write_file(out, federation.crl(), 0o644)
        say(as_json, {"file": str(out)}, str(out))
