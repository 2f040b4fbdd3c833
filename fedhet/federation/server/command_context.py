"""What the operator's commands share: an opened federation, its audit log, and dates as they are printed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.output import spoken
from fedhet.federation.pki.passphrase import obtain
from fedhet.federation.server.audit_log import Audit
from fedhet.federation.server.operator import Federation

UNENCRYPTED = """NOT ENCRYPTED: the keys in %s
  Any program of this account, a backup or a stolen disk can disclose them; whoever has them can admit devices and
  impersonate this server. To encrypt them: fedhet ca passphrase"""
UNPROVED = "lines 1 to %d are not authenticated by the key: the log was rekeyed in line %d; they are unchanged since"


@contextlib.contextmanager
def opened(home: Path, as_json: bool, passphrase: Path | None = None) -> Iterator[Federation]:
    with spoken(as_json), contextlib.closing(Federation(home)) as federation:
        federation.authority.lock.ask = partial(obtain, passphrase)
        yield federation


def audit_log_of(home: Path) -> Audit:
    if not (home / "registry.db").is_file():
        raise EnrollError("E306", f"{home} holds no federation: see --home and FEDHET_HOME")
    return Audit(home / "audit.jsonl")


def day(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).date().isoformat()


def date_and_time(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S")
