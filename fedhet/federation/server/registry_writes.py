"""Changes to the registry's rows. Each is made inside a transaction that also adds the audit line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.certificates import Leaf
from fedhet.federation.pki.invitation import MAX_TRIES, same
from fedhet.federation.server.client_names import check_distinct
from fedhet.federation.server.schema import (
    ACTIVE,
    INVITED,
    LEFT,
    LIVING,
    MOVES,
    PENDING,
    REVOKED,
    SUSPENDED,
    CertificateRow,
    ClientRow,
    NonceRow,
    RetiredNodeRow,
    TokenRow,
)


@dataclass(frozen=True, slots=True)
class Applicant:
    """The application of a device, parsed and with verified signatures."""

    node: str
    public: bytes
    flower_public: str
    csr: bytes
    name: str = ""
    address: str = ""
    partition: int | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)


def by_name(session: Session, name: str) -> ClientRow:
    """A row by name or node id: one that is not revoked or left first, then the newest. Raises EnrollError E210."""
    query = select(ClientRow).where((ClientRow.name == name) | (ClientRow.node == name))
    rows = sorted(session.scalars(query), key=lambda row: (row.state not in (REVOKED, LEFT), row.number))
    if not rows:
        raise EnrollError("E210", name)
    return rows[-1]


def invite(
    session: Session, token_id: str, hashed: bytes, *, name: str, device_class: str, labels: Mapping[str, Any],
    expires: float, now: float, most: int, most_per_owner: int,
) -> ClientRow:  # fmt: skip
    """Create an invited row; an unused invitation of the same name is replaced.

    The label "owner" names the client's owner. Raises EnrollError E104, E118 or E211.
    """
    living = [
        r for r in session.scalars(select(ClientRow).where(ClientRow.name == name)) if r.state not in (REVOKED, LEFT)
    ]
    if living and living[0].state != INVITED:
        raise EnrollError("E104", name)
    check_distinct(session, name)
    if owner := labels.get("owner"):
        others = [r for r in session.scalars(select(ClientRow)) if r.labels.get("owner") == owner and r not in living]
        if sum(r.state not in (REVOKED, LEFT) for r in others) >= most_per_owner:
            raise EnrollError("E118", f"{owner} has {most_per_owner}")
    if living:
        row = living[0]
        session.execute(delete(TokenRow).where(TokenRow.client == row.number))
        row.device_class, row.labels, row.changed = device_class, dict(labels), now
    else:
        number = session.scalar(select(func.max(ClientRow.number)))
        number = 0 if number is None else number + 1
        if number >= most:
            raise EnrollError("E211", f"the policy allows {most} clients")
        row = ClientRow(number=number, name=name, device_class=device_class, state=INVITED, labels=dict(labels),
                        created=now, changed=now)  # fmt: skip
        session.add(row)
    session.flush()
    session.add(TokenRow(id=token_id, client=row.number, hash=hashed, expires=expires))
    return row


def redeem(session: Session, token_id: str, secret: str, public: bytes, now: float) -> ClientRow | EnrollError:
    """The invited row of a token, or the error. Failed attempts are counted, so the caller must commit in either case.

    A device that used a token may redeem it again: the answer may have been lost.
    """
    token = session.get(TokenRow, token_id)
    if token is None:
        return EnrollError("E106")
    if token.tries >= MAX_TRIES:
        return EnrollError("E107")
    if not same(token.hash, token_id, secret):
        token.tries += 1
        return EnrollError("E107" if token.tries >= MAX_TRIES else "E106")
    row = session.get(ClientRow, token.client)
    if row is None:
        return EnrollError("E106")
    if token.used is not None:
        return row if row.public == public else EnrollError("E102", f"by the device {str(row.node)[:12]}")
    if now > token.expires:
        return EnrollError("E101", f"{int(now - token.expires)} seconds ago")
    if row.state != INVITED:
        return EnrollError("E211", f"{row.name} is {row.state}")
    token.used = now
    return row


def apply(session: Session, row: ClientRow, applicant: Applicant, now: float) -> None:
    """Enter a device in an invited row, which keeps the invitation's name. Raises EnrollError E114 or E116."""
    own = row.number if applicant.partition is None else applicant.partition
    living = session.scalars(select(ClientRow).where(ClientRow.state.in_((PENDING, ACTIVE, SUSPENDED))))
    if any(other.client_id == own for other in living):
        raise EnrollError("E116", f"partition {own}")
    for name in ("node", "public", "flower_public", "csr", "address", "partition"):
        setattr(row, name, getattr(applicant, name))
    row.declared, row.measured = dict(applicant.declared), dict(applicant.measured)
    move(row, PENDING, now)
    try:
        session.flush()
    except IntegrityError:
        raise EnrollError("E114", applicant.node[:12]) from None


def move(row: ClientRow, state: str, now: float, reason: str = "", of: Collection[str] = LIVING) -> None:
    """Change a client's state. Raises EnrollError E211 unless the state is one `of` and `MOVES` allows the change."""
    if row.state in LIVING and row.state not in of:
        raise EnrollError("E211", f"{row.name} is {row.state}, not {' or '.join(of)}")
    if (row.state, state) not in MOVES:
        raise EnrollError("E211", f"{row.name} is {row.state} and cannot become {state}")
    row.state, row.reason, row.changed = state, reason, now


def replace_keys(session: Session, row: ClientRow, applicant: Applicant, now: float) -> None:
    """Replace a client's keys, and retire the SuperLink node of the old ones. Raises EnrollError E114."""
    if row.flower_node is not None:
        session.merge(RetiredNodeRow(flower_node=row.flower_node))
    row.node, row.public, row.flower_public = applicant.node, applicant.public, applicant.flower_public
    row.csr, row.flower_node, row.changed = applicant.csr, None, now
    try:
        session.flush()
    except IntegrityError:
        raise EnrollError("E114", applicant.node[:12]) from None


def grant(session: Session, row: ClientRow, leaf: Leaf, chain: bytes, request: bytes) -> None:
    """Record an issued certificate."""
    dates = {"not_before": leaf.not_before, "not_after": leaf.not_after}
    given = {"client": row.number, "public": leaf.public, "chain": chain, "request": request}
    session.add(CertificateRow(serial=leaf.serial, **dates, **given))


def deny(session: Session, row: ClientRow, now: float, reason: str, keep: str = "") -> list[str]:
    """Revoke a client's certificates, except the serial `keep`; returns the revoked serials."""
    query = select(CertificateRow).where(CertificateRow.client == row.number, CertificateRow.denied.is_(None))
    found = [c for c in session.scalars(query) if c.serial != keep]
    for certificate in found:
        certificate.denied, certificate.reason = now, reason
    return [c.serial for c in found]


def fresh(session: Session, node: str, nonce: str, now: float, keep: float) -> None:
    """Store a request's nonce for `keep` seconds. Raises EnrollError E204 if it was used before."""
    session.execute(delete(NonceRow).where(NonceRow.until < now))
    session.add(NonceRow(node=node, nonce=nonce, until=now + keep))
    try:
        session.flush()
    except IntegrityError:
        raise EnrollError("E204") from None
