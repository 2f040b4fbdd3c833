"""Whether the registry says what the audit log says: what decides whether a client may work, field by field.

Every change of a client notes, in the same transaction as the change itself, a line that holds these fields as they are
after it. The line waits in the registry until it is in the log, so that neither a kill nor a full disk can leave the
one without the other.
"""

from __future__ import annotations

import contextlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from fedhet.federation.pki.canonical_json import canonical, digest
from fedhet.federation.server.audit_chain import mark
from fedhet.federation.server.audit_log import Audit
from fedhet.federation.server.schema import INVITED, CertificateRow, ClientRow, TokenRow, WaitingLineRow

ADOPTED = "adopt"
"""The action of the line from which on an older federation is compared: it holds all clients as they were then."""


def decisive(session: Session, row: ClientRow) -> dict[str, Any]:
    """What decides whether a client may work and how much it counts. Long values as the beginning of their hash."""
    issued = select(CertificateRow).where(CertificateRow.client == row.number).order_by(CertificateRow.id)
    papers = [[c.serial, c.public.hex(), int(c.not_after), c.denied is None] for c in session.scalars(issued)]
    open_to = [[t.id, t.hash.hex(), int(t.expires)] for t in _tokens(session, row)] if row.state == INVITED else []
    told = {"number": row.number, "name": row.name, "class": row.device_class, "state": row.state, "node": row.node}
    told |= {"partition": row.partition, "examples": int(row.declared.get("examples", 0))}
    told |= {"approved_examples": row.approved_examples, "owner": row.labels.get("owner")}
    keys = [None if row.public is None else row.public.hex(), row.flower_public]
    return {**told, "keys": _short(keys), "certificates": _short(papers), "invitation": _short(open_to)}


def note(session: Session, audit: Audit, row: ClientRow, actor: str, action: str, **detail: Any) -> None:
    """Let a line about a client wait in the registry, as part of the transaction that changed it."""
    session.flush()
    if not audit.is_keyed:
        clients = [decisive(session, one) for one in session.scalars(select(ClientRow).order_by(ClientRow.number))]
        _wait(session, audit, audit.line("audit", ADOPTED, clients=clients))
    _wait(session, audit, audit.line(actor, action, row.name, **detail, client=decisive(session, row)))


def wait(session: Session, audit: Audit, actor: str, action: str, **detail: Any) -> None:
    """Let a line about no client wait, likewise."""
    _wait(session, audit, audit.line(actor, action, **detail))


def settle(session: Session, audit: Audit) -> None:
    """Write the lines that wait into the log. Raises what `Audit.append` does."""
    found = list(session.scalars(select(WaitingLineRow).order_by(WaitingLineRow.id)))
    if found:
        audit.extend([_line(audit, row) for row in found])
        session.execute(delete(WaitingLineRow).where(WaitingLineRow.id <= found[-1].id))


def differences(session: Session, audit: Audit, *, proved: bool = True) -> list[str]:
    """What the registry says otherwise than the log and the lines that wait, a sentence each; `proved`: only lines that
    the key proves wait, which is to be False if it is lost."""
    rows = session.scalars(select(WaitingLineRow).order_by(WaitingLineRow.id))
    waiting = [_line(audit, row, proved=proved) for row in rows]
    logged: dict[int, tuple[str, Mapping[str, Any]]] = {}
    compared = False
    for place, line in _told(audit.rows(), waiting):
        detail = line["detail"]
        for client in [*detail.get("clients", ()), *([detail["client"]] if "client" in detail else ())]:
            logged[client["number"]], compared = (f"{place} ({line['action']})", client), True
    if not compared:
        return []  # nothing was written about a client by a version that says enough
    return list(_compared(session, logged))


def rekey(session: Session, key: bytes) -> int:
    """Mark the lines that wait with a new key, for the one that marked them is lost; how many there are."""
    rows = list(session.scalars(select(WaitingLineRow)))
    for row in rows:
        row.mac = mark(key, row.content)
    return len(rows)


def _compared(session: Session, logged: dict[int, tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    for row in session.scalars(select(ClientRow).order_by(ClientRow.number)):
        if row.number not in logged:
            yield f"client {row.number} ({row.name}) is in the registry and not in the log"
            continue
        place, said = logged.pop(row.number)
        try:
            holds = decisive(session, row)
        except (AttributeError, TypeError, ValueError) as error:
            yield f"client {row.number} ({row.name}) holds what was never written there: {error}"
            continue
        for field, value in holds.items():
            if said.get(field) != value:
                yield f"client {row.number} ({row.name}): {field} is {value!r}, but {said.get(field)!r} in {place}"
    for number, (place, said) in sorted(logged.items()):
        yield f"client {number} ({said.get('name')}) of {place} is not in the registry"


def _told(
    rows: Iterable[Mapping[str, Any]], waiting: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    seen = set()
    for row in rows:
        seen.add(row.get("ref"))
        yield f"line {row['n']}", row
    yield from (("a line that waits", line) for line in waiting if line["ref"] not in seen)


def _wait(session: Session, audit: Audit, line: Mapping[str, Any]) -> None:
    content = canonical(line)
    session.add(WaitingLineRow(content=content, mac=audit.sign(content)))


def _line(audit: Audit, row: WaitingLineRow, *, proved: bool = True) -> dict[str, Any]:
    """A line that waited; one that nobody with the key put there, or without `proved` one that is none, says so
    instead."""
    if not proved:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            told = dict(json.loads(row.content))
            return {**told, "ref": str(told["ref"]), "detail": dict(told["detail"]), "action": str(told["action"])}
    elif hmac.compare_digest(row.mac, audit.sign(row.content)):
        return dict(json.loads(row.content))
    return audit.line("audit", "altered", why=f"a line that waited in the registry ({row.id}) was not written by us")


def _tokens(session: Session, row: ClientRow) -> Iterable[TokenRow]:
    return session.scalars(select(TokenRow).where(TokenRow.client == row.number).order_by(TokenRow.id))


def _short(value: Any) -> str:
    return digest("fedhet.audit.field.v1", canonical(value)).hex()[:16]
