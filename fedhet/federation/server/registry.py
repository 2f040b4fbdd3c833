"""The clients of a federation, in one SQLite file that the enrolment API, the TLS proxy and the commands share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import schema
from fedhet.federation.server.registry_writes import by_name
from fedhet.federation.server.schema import CertificateRow, ClientRow, RetiredNodeRow


@dataclass(frozen=True, slots=True)
class Client:
    """A snapshot of a client. Times are in seconds since 1970; `expires` is that of its newest certificate.

    `approved_examples` is the number of examples that the operator approved; None before the first approval.
    """

    number: int
    name: str
    device_class: str
    state: str
    reason: str
    labels: Mapping[str, Any]
    node: str | None
    public: bytes | None
    flower_public: str | None
    flower_node: str | None
    csr: bytes | None
    address: str
    partition: int | None
    declared: Mapping[str, Any]
    measured: Mapping[str, Any]
    observed: Mapping[str, Any]
    created: float
    changed: float
    approved_examples: int | None = None
    expires: float | None = None
    serials: tuple[str, ...] = ()

    @property
    def client_id(self) -> int:
        """The client's number in a run: its declared partition, else its registry number."""
        return self.number if self.partition is None else self.partition

    def to_dict(self) -> dict[str, Any]:
        """The fields that `--json` prints: all but the keys and the certificate request."""
        hidden = ("public", "flower_public", "csr")
        names = [f.name for f in fields(self) if f.name not in hidden]
        return {name: getattr(self, name) for name in names}


class Registry:
    """The clients, tokens and certificates in a SQLite file that several processes may use at once."""

    def __init__(self, path: Path) -> None:
        self._engine = schema.connect(path)

    def close(self) -> None:
        """Release the file."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A write transaction. It waits for other writers."""
        with Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._engine.connect().execution_options(begin="DEFERRED") as connection, Session(connection) as session:
            yield session

    # Reading

    def clients(self, *states: str) -> list[Client]:
        """Clients in these states (all if none is named), by number."""
        query = select(ClientRow).order_by(ClientRow.number)
        issued = select(CertificateRow.client, CertificateRow.serial, CertificateRow.not_after, CertificateRow.denied)
        if states:
            query = query.where(ClientRow.state.in_(states))
            issued = issued.join(ClientRow).where(ClientRow.state.in_(states))
        serials: dict[int, list[str]] = {}
        expires: dict[int, float] = {}
        with self._reading() as session:
            for number, serial, until, denied in session.execute(issued.order_by(CertificateRow.id)):
                serials.setdefault(number, []).append(serial)
                if denied is None:
                    expires[number] = until
            return [_made(row, expires.get(row.number), serials.get(row.number, [])) for row in session.scalars(query)]

    def client(self, name: str) -> Client:
        """The client with a name or node id; one that is not revoked or left comes first. Raises EnrollError E210."""
        with self._reading() as session:
            return _client(session, by_name(session, name))

    def by_node(self, node: str) -> Client | None:
        """The client whose identity key has this node id."""
        with self._reading() as session:
            row = session.scalar(select(ClientRow).where(ClientRow.node == node))
            return _client(session, row) if row else None

    def by_flower_key(self, line: str) -> Client | None:
        """The client whose SuperNode has this public key (one OpenSSH line)."""
        with self._reading() as session:
            row = session.scalar(select(ClientRow).where(ClientRow.flower_public == line))
            return _client(session, row) if row else None

    def certificate(self, serial: str) -> CertificateRow | None:
        """The issued certificate with a serial number; None if there is none."""
        with self._reading() as session:
            return session.scalar(select(CertificateRow).where(CertificateRow.serial == serial))

    def newest(self, number: int) -> CertificateRow | None:
        """The newest certificate of a client that is not revoked; None if there is none."""
        with self._reading() as session:
            return _newest(session, number)

    def denied(self, now: float) -> list[tuple[str, float]]:
        """Serial and second of revocation of every revoked certificate that has not expired."""
        query = select(CertificateRow.serial, CertificateRow.denied).where(CertificateRow.denied.is_not(None))
        with self._reading() as session:
            return [(s, at) for s, at in session.execute(query.where(CertificateRow.not_after > now)) if at]

    def set_flower_node(self, number: int, node: str | None, key: str | None = None) -> bool:
        """Store the SuperLink's node id of a client, or None; returns whether it was stored.

        With `key`, only if that is still the public key of the client's SuperNode.
        """
        query = update(ClientRow).where(ClientRow.number == number)
        if key is not None:
            query = query.where(ClientRow.flower_public == key)
        with self.transaction() as session:
            return bool(session.execute(query.values(flower_node=node)).rowcount)  # type: ignore[attr-defined]

    def retired(self) -> list[str]:
        """SuperLink node ids whose keys were replaced and that are not unregistered yet."""
        with self._reading() as session:
            return list(session.scalars(select(RetiredNodeRow.flower_node)))

    def forget_node(self, node: str) -> None:
        """Record that a retired node is unregistered."""
        with self.transaction() as session:
            session.execute(delete(RetiredNodeRow).where(RetiredNodeRow.flower_node == node))

    def observe(self, number: int, **figures: float | int) -> None:
        """Merge figures into a client's observed column. Raises EnrollError E210."""
        with self.transaction() as session:
            row = session.get(ClientRow, number)
            if row is None:
                raise EnrollError("E210", f"number {number}")
            row.observed = {**row.observed, **figures}


def _newest(session: Session, number: int) -> CertificateRow | None:
    query = select(CertificateRow).where(CertificateRow.client == number, CertificateRow.denied.is_(None))
    return session.scalars(query.order_by(CertificateRow.id.desc())).first()


def _client(session: Session, row: ClientRow) -> Client:
    query = select(CertificateRow.serial).where(CertificateRow.client == row.number)
    newest = _newest(session, row.number)
    return _made(row, newest.not_after if newest else None, session.scalars(query))


def _made(row: ClientRow, expires: float | None, serials: Iterable[str]) -> Client:
    values = {column.name: getattr(row, column.name) for column in ClientRow.__table__.columns}
    return Client(**values, expires=expires, serials=tuple(serials))
