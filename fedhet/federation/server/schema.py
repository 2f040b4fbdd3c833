"""The registry's tables, and how its SQLite file is opened: WAL, fsync at every commit, one writer at a time."""

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
"""The allowed changes of state. Revoked and left are final: a device that enrols again has new keys and a new row."""


class Base(DeclarativeBase):
    """Base class of the tables."""


class ClientRow(Base):
    """A client. `number` is never reused; `node` is the node id, derived from the identity key once there is one."""

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
        """The client's number in a run: its declared partition, else its registry number."""
        return self.number if self.partition is None else self.partition


class RetiredNodeRow(Base):
    """A SuperLink node whose key was replaced and that is not unregistered yet."""

    __tablename__ = "retired_nodes"
    flower_node: Mapped[str] = mapped_column(primary_key=True)


class TokenRow(Base):
    """An invitation token, with the hash of its secret instead of the secret."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(primary_key=True)
    client: Mapped[int] = mapped_column(ForeignKey("clients.number"), index=True)
    hash: Mapped[bytes]
    expires: Mapped[float]
    tries: Mapped[int] = mapped_column(default=0)
    used: Mapped[float | None] = mapped_column(default=None)


class CertificateRow(Base):
    """An issued certificate. A certificate without a row here is refused."""

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
    """A line of the audit log that may not be in the file yet, with its HMAC under the log's key."""

    __tablename__ = "waiting_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[bytes]
    mac: Mapped[bytes]


class NonceRow(Base):
    """The nonce of a request, stored for as long as the request could be replayed."""

    __tablename__ = "nonces"
    node: Mapped[str] = mapped_column(primary_key=True)
    nonce: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[float] = mapped_column(index=True)


def connect(path: Path) -> Engine:
    """Open a registry file; it is created, or its tables updated, where needed."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver starts no transactions of its own
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A reader that becomes a writer can fail with SQLITE_BUSY; taking the write lock first makes it wait instead.
        mode = connection.get_execution_options().get("begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    with private_files.sound(path):
        Base.metadata.create_all(engine)
        _migrate(engine)
    path.chmod(0o600)
    return engine


def _migrate(engine: Engine) -> None:
    """Add columns that a registry of an earlier version lacks. What clients had declared then counts as approved."""
    with engine.connect().execution_options(begin="DEFERRED") as connection:
        if "approved_examples" in {row[1] for row in connection.exec_driver_sql("PRAGMA table_info(clients)")}:
            return
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE clients ADD COLUMN approved_examples INTEGER")
        connection.exec_driver_sql(
            "UPDATE clients SET approved_examples = coalesce(json_extract(declared, '$.examples'), 0) "
            "WHERE state NOT IN ('invited', 'pending')"
        )
