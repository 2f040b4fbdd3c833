"""Comparison of the registry with the audit log, over the fields that decide whether and with which weight a client
works.

Every change of a client adds, in the same transaction, a log line with these fields as they are after the change. The
line waits in the registry until it is in the log, so neither a kill nor a full disk can separate change and line.
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
"""The action of the first compared line in a federation of an earlier version: it records all clients of that
moment."""


def compared_fields(session: Session, row: ClientRow) -> dict[str, Any]:
    """The fields of a client that are compared. Long values are replaced by the first digits of their hash."""
    issued = select(CertificateRow).where(CertificateRow.client == row.number).order_by(CertificateRow.id)
    certificates = [[c.serial, c.public.hex(), int(c.not_after), c.denied is None] for c in session.scalars(issued)]
    invitations = [[t.id, t.hash.hex(), int(t.expires)] for t in _tokens(session, row)] if row.state == INVITED else []
    fields = {"number": row.number, "name": row.name, "class": row.device_class, "state": row.state, "node": row.node}
    fields |= {"partition": row.partition, "examples": int(row.declared.get("examples", 0))}
    fields |= {"approved_examples": row.approved_examples, "owner": row.labels.get("owner")}
    keys = [None if row.public is None else row.public.hex(), row.flower_public]
    return {**fields, "keys": _short(keys), "certificates": _short(certificates), "invitation": _short(invitations)}


def note(session: Session, audit: Audit, row: ClientRow, actor: str, action: str, **detail: Any) -> None:
    """Queue a log line about a client in the registry, in the transaction that changes the client."""
    session.flush()
    if not audit.is_keyed:
        clients = [
            compared_fields(session, one) for one in session.scalars(select(ClientRow).order_by(ClientRow.number))
        ]
        _queue(session, audit, audit.line("audit", ADOPTED, clients=clients))
    _queue(session, audit, audit.line(actor, action, row.name, **detail, client=compared_fields(session, row)))


def queue_line(session: Session, audit: Audit, actor: str, action: str, **detail: Any) -> None:
    """Queue a log line that is not about a client, likewise."""
    _queue(session, audit, audit.line(actor, action, **detail))


def settle(session: Session, audit: Audit) -> None:
    """Append the queued lines to the log. Raises what `Audit.append` raises."""
    found = list(session.scalars(select(WaitingLineRow).order_by(WaitingLineRow.id)))
    if found:
        audit.extend([_queued_line(audit, row) for row in found])
        session.execute(delete(WaitingLineRow).where(WaitingLineRow.id <= found[-1].id))


def differences(session: Session, audit: Audit, *, proved: bool = True) -> list[str]:
    """The differences between registry and log (with the queued lines), one sentence each.

    `proved`: verify the queued lines with the log's key; False if the key is lost.
    """
    rows = session.scalars(select(WaitingLineRow).order_by(WaitingLineRow.id))
    waiting = [_queued_line(audit, row, proved=proved) for row in rows]
    logged: dict[int, tuple[str, Mapping[str, Any]]] = {}
    compared = False
    for place, line in _lines(audit.rows(), waiting):
        detail = line["detail"]
        for client in [*detail.get("clients", ()), *([detail["client"]] if "client" in detail else ())]:
            logged[client["number"]], compared = (f"{place} ({line['action']})", client), True
    if not compared:
        return []  # no line has these fields: the log is of an earlier version
    return list(_differences(session, logged))


def rekey(session: Session, key: bytes) -> int:
    """Authenticate the queued lines with a new key, after the old one was lost; returns their number."""
    rows = list(session.scalars(select(WaitingLineRow)))
    for row in rows:
        row.mac = mark(key, row.content)
    return len(rows)


def _differences(session: Session, logged: dict[int, tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    for row in session.scalars(select(ClientRow).order_by(ClientRow.number)):
        if row.number not in logged:
            yield f"client {row.number} ({row.name}) is in the registry and not in the log"
            continue
        place, logged_fields = logged.pop(row.number)
        try:
            stored_fields = compared_fields(session, row)
        except (AttributeError, TypeError, ValueError) as error:
            yield f"client {row.number} ({row.name}) has values of a wrong type: {error}"
            continue
        for field, value in stored_fields.items():
            if logged_fields.get(field) != value:
                logged_value = logged_fields.get(field)
                yield f"client {row.number} ({row.name}): {field} is {value!r}, but {logged_value!r} in {place}"
    for number, (place, logged_fields) in sorted(logged.items()):
        yield f"client {number} ({logged_fields.get('name')}) of {place} is not in the registry"


def _lines(
    rows: Iterable[Mapping[str, Any]], waiting: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    seen = set()
    for row in rows:
        seen.add(row.get("ref"))
        yield f"line {row['n']}", row
    yield from (("a queued line", line) for line in waiting if line["ref"] not in seen)


def _queue(session: Session, audit: Audit, line: Mapping[str, Any]) -> None:
    content = canonical(line)
    session.add(WaitingLineRow(content=content, mac=audit.sign(content)))


def _queued_line(audit: Audit, row: WaitingLineRow, *, proved: bool = True) -> dict[str, Any]:
    """A queued line. For one with a wrong HMAC, or without `proved` one that cannot be parsed, an `altered` line
    instead."""
    if not proved:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            fields = dict(json.loads(row.content))
            return {
                **fields,
                "ref": str(fields["ref"]),
                "detail": dict(fields["detail"]),
                "action": str(fields["action"]),
            }
    elif hmac.compare_digest(row.mac, audit.sign(row.content)):
        return dict(json.loads(row.content))
    return audit.line(
        "audit", "altered", why=f"a line that waited in the registry ({row.id}) was not written by fedhet"
    )


def _tokens(session: Session, row: ClientRow) -> Iterable[TokenRow]:
    return session.scalars(select(TokenRow).where(TokenRow.client == row.number).order_by(TokenRow.id))


def _short(value: Any) -> str:
    return digest("fedhet.audit.field.v1", canonical(value)).hex()[:16]
