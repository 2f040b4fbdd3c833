"""Who the clients are, read from one SQLite file that the service, the proxy and the operator's commands share."""

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
    """A client as it was when read. Times are seconds since 1970; `expires` is that of its newest certificate.

    `approved_examples` is how many examples the operator let it in with; None before that.
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
        """The number under which a schedule knows it: its declared partition, else its own number."""
        return self.number if self.partition is None else self.partition

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
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
        """One writer at a time; all or nothing."""
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
        """The client of a name or node id: the living one if there was an earlier. Raises EnrollError E210."""
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
        """A certificate that was issued."""
        with self._reading() as session:
            return session.scalar(select(CertificateRow).where(CertificateRow.serial == serial))

    def newest(self, number: int) -> CertificateRow | None:
        """The certificate that a client got last, unless it is denied."""
        with self._reading() as session:
            return _newest(session, number)

    def denied(self, now: float) -> list[tuple[str, float]]:
        """Serials on the deny list and since when, until they would have expired anyway."""
        query = select(CertificateRow.serial, CertificateRow.denied).where(CertificateRow.denied.is_not(None))
        with self._reading() as session:
            return [(s, at) for s, at in session.execute(query.where(CertificateRow.not_after > now)) if at]

    def set_flower_node(self, number: int, node: str | None, key: str | None = None) -> bool:
        """Note under which node id the SuperLink knows a client, or that it does not; whether it was noted.

        With `key` only if that is still the key of the client's SuperNode.
        """
        query = update(ClientRow).where(ClientRow.number == number)
        if key is not None:
            query = query.where(ClientRow.flower_public == key)
        with self.transaction() as session:
            return bool(session.execute(query.values(flower_node=node)).rowcount)  # type: ignore[attr-defined]

    def retired(self) -> list[str]:
        """NodeDirectory of the SuperLink whose keys were replaced and which are still to be taken away."""
        with self._reading() as session:
            return list(session.scalars(select(RetiredNodeRow.flower_node)))

    def forget_node(self, node: str) -> None:
        """A retired node was taken away."""
        with self.transaction() as session:
            session.execute(delete(RetiredNodeRow).where(RetiredNodeRow.flower_node == node))

    def observe(self, number: int, **figures: float | int) -> None:
        """Note what the server itself saw of a client, over what was noted before."""
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
