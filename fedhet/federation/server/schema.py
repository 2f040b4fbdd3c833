"""The registry's tables, and how its SQLite file is opened: WAL, every commit on the disk, one writer at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Engine, ForeignKey, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fedhet.federation.common import private_files

INVITED, PENDING, ACTIVE = "invited", "pending", "active"
SUSPENDED, REVOKED, LEFT = "suspended", "revoked", "left"
LIVING = frozenset({INVITED, PENDING, ACTIVE, SUSPENDED})
MOVES = {
    *((INVITED, to) for to in (PENDING, REVOKED)),
    *((PENDING, to) for to in (ACTIVE, REVOKED, LEFT)),
    *((ACTIVE, to) for to in (SUSPENDED, REVOKED, LEFT)),
    *((SUSPENDED, to) for to in (ACTIVE, REVOKED, LEFT)),
}
"""Revoked and left are final: a device that comes back has new keys and a new row."""


class Base(DeclarativeBase):
    """What the tables have in common."""


class ClientRow(Base):
    """A client. `number` is its ClientId, never used twice; `node` follows from its identity key once it has one."""

    __tablename__ = "clients"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(index=True)
    device_class: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str] = mapped_column(default="")
    labels: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    node: Mapped[str | None] = mapped_column(unique=True, default=None)
    public: Mapped[bytes | None] = mapped_column(default=None)
    flower_public: Mapped[str | None] = mapped_column(unique=True, default=None)
    flower_node: Mapped[str | None] = mapped_column(default=None)
    csr: Mapped[bytes | None] = mapped_column(default=None)
    address: Mapped[str] = mapped_column(default="")
    partition: Mapped[int | None] = mapped_column(default=None)
    declared: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    measured: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    observed: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    approved_examples: Mapped[int | None] = mapped_column(default=None)
    created: Mapped[float]
    changed: Mapped[float]

    @property
    def client_id(self) -> int:
        """The number under which a schedule knows it: its declared partition, else its own number."""
        return self.number if self.partition is None else self.partition


class RetiredNodeRow(Base):
    """A node of the SuperLink whose key was replaced and which is still to be taken away."""

    __tablename__ = "retired_nodes"
    flower_node: Mapped[str] = mapped_column(primary_key=True)


class TokenRow(Base):
    """An invitation: the hash of its secret, never the secret."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[int] = mapped_column(ForeignKey("clients.number"), index=True)
    hash: Mapped[bytes]
    expires: Mapped[float]
    tries: Mapped[int] = mapped_column(default=0)
    used: Mapped[float | None] = mapped_column(default=None)


class CertificateRow(Base):
    """A certificate that was issued. Without a row here a certificate is worth nothing."""

    __tablename__ = "certificates"
    id: Mapped[int] = mapped_column(primary_key=True)
    serial: Mapped[str] = mapped_column(unique=True)
    client: Mapped[int] = mapped_column(ForeignKey("clients.number"), index=True)
    not_before: Mapped[float]
    not_after: Mapped[float]
    public: Mapped[bytes]
    chain: Mapped[bytes]
    request: Mapped[bytes]
    denied: Mapped[float | None] = mapped_column(default=None)
    reason: Mapped[str] = mapped_column(default="")


class WaitingLineRow(Base):
    """A line of the audit log that is not known to be in the file yet, with the mark of the log's key."""

    __tablename__ = "waiting_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[bytes]
    mac: Mapped[bytes]


class NonceRow(Base):
    """A request that was seen, remembered as long as it could be replayed."""

    __tablename__ = "nonces"
    node: Mapped[str] = mapped_column(primary_key=True)
    nonce: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[float] = mapped_column(index=True)


def connect(path: Path) -> Engine:
    """Open, and if need be make, a registry file."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A reader that becomes a writer half-way can fail; taking the lock first, it waits instead.
        mode = connection.get_execution_options().get("begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    with private_files.sound(path):
        Base.metadata.create_all(engine)
        _bring_up_to_date(engine)
    path.chmod(0o600)
    return engine


def _bring_up_to_date(engine: Engine) -> None:
    """Columns that a registry from an earlier version does not have. What clients had declared then was approved."""
    with engine.connect().execution_options(begin="DEFERRED") as connection:
        if "approved_examples" in {row[1] for row in connection.exec_driver_sql("PRAGMA table_info(clients)")}:
            return
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE clients ADD COLUMN approved_examples INTEGER")
        connection.exec_driver_sql(
            "UPDATE clients SET approved_examples = coalesce(json_extract(declared, '$.examples'), 0) "
            "WHERE state NOT IN ('invited', 'pending')"
        )
