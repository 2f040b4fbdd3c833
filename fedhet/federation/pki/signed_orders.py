"""A run's order: the operator's signature over the configuration that devices build, which a server cannot forge.

`fedhet submit` signs, and the order is stored in the run folder, so that resuming a run needs no key. A device builds a
configuration if a known operator key signed it for the device's federation and the order has not expired. Replaying an
order before it expires gives a server nothing that it could not do without.

    order  canonical JSON {"config": SHA-256 of the text, "expires", "issued": seconds, "roots": [SHA-256, ...]}
    signature  ECDSA over H(domain, order)

The text is signed in the bytes that are sent, so that it cannot be parsed in two ways.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import certificates, operator_key
from fedhet.federation.pki.canonical_json import canonical
from fedhet.federation.pki.certificates import DAY

if TYPE_CHECKING:
    from fedhet.federation.device.state import Device
    from fedhet.federation.pki.ca import Authority

DOMAIN = "fedhet.order.v1"
NAME = "order.json"
"""File of a run folder that contains its order."""
MAX_CHARACTERS = 1 << 16
"""Longest order that a device reads, in characters."""


@dataclass(frozen=True, slots=True)
class Order:
    """A signed order as it is sent with every job: the order's text, its signature, and the chain of operator keys
    (operator_key.py) as JSON, through which a device verifies a key that it does not know yet."""

    text: str
    signature: str
    line: str

    @classmethod
    def sign(cls, authority: Authority, config: str, days: float, now: float) -> Order:
        """Sign a configuration, valid for `days` from `now` (seconds since 1970). Raises EnrollError E306."""
        key = operator_key.load(authority)
        fields = {
            "config": _digest(config),
            "issued": int(now),
            "expires": int(now + days * DAY),
            "roots": [certificates.fingerprint(root) for root in authority.roots()],
        }
        text = canonical(fields).decode()
        line = json.dumps(operator_key.to_json(operator_key.line(authority.folder)))
        return cls(text, operator_key.sign(key, DOMAIN, text.encode()), line)

    @classmethod
    def of(cls, folder: Path) -> Order | None:
        """The order in a run folder; None if there is none. Raises EnrollError E306 for a damaged one."""
        try:
            fields = json.loads((folder / NAME).read_text())
            return cls(str(fields["text"]), str(fields["signature"]), str(fields["line"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise EnrollError("E306", f"{folder / NAME}: {error!r}"[:160]) from None

    @classmethod
    def parse(cls, sent: str) -> Order:
        """Parse the text that `sent` returns. Raises EnrollError E215."""
        try:
            fields = json.loads(sent) if len(sent) <= MAX_CHARACTERS else {}
            return cls(str(fields["text"]), str(fields["signature"]), str(fields["line"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EnrollError("E215", "its order cannot be read") from None

    @property
    def sent(self) -> str:
        """The order as JSON text, as it is sent."""
        return json.dumps(asdict(self), sort_keys=True)

    def store(self, folder: Path) -> None:
        """Store it in a run folder."""
        private_files.write_file(folder / NAME, self.sent + "\n", 0o644)

    def is_for(self, config: str) -> bool:
        """Whether it is about this configuration; the signature is not verified. Raises EnrollError E215."""
        return bool(self.fields().get("config") == _digest(config))

    def fields(self) -> dict[str, Any]:
        """The parsed text. Raises EnrollError E215."""
        try:
            fields = json.loads(self.text)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise EnrollError("E215", "its order cannot be read")
        return fields

    def is_signed_by(self, key: operator_key.Succession) -> bool:
        """Whether this operator key signed it."""
        public = operator_key.public_key(key.public)
        return operator_key.verified(public, self.signature, DOMAIN, self.text.encode())


def renew(authority: Authority, folder: Path, config: str, days: float, now: float) -> bool:
    """Make sure that a run folder has a valid order; returns whether it was signed now.

    An existing configuration is signed again only if an operator key of this term signed the same one before, because
    the server's account may have changed the file since. Raises EnrollError E306 or E217.
    """
    order, line = Order.of(folder), operator_key.ensure(authority)
    if order is not None and not order.is_for(config):
        raise EnrollError("E217", f"{folder / 'config.yaml'} is not what {folder / NAME} is about")
    trusted = [key for key in line if key.term == line[-1].term]  # earlier terms are revoked by the root
    if order is not None and not any(order.is_signed_by(key) for key in trusted):
        raise EnrollError("E217", f"{folder / NAME} was signed by a key that is not, or no longer, this federation's")
    if (
        order is not None
        and order.is_signed_by(line[-1])
        and now < int(order.fields().get("expires", 0)) - days * DAY / 2
    ):
        return False
    Order.sign(authority, config, days, now).store(folder)
    return True


@dataclass(frozen=True, slots=True)
class Guard:
    """A device's check of the orders that come with jobs."""

    device: Device
    clock: Callable[[], float] = time.time

    def check(self, config: str, sent: str) -> None:
        """Raises EnrollError E215 unless the operator signed this configuration for this federation, E216 if the order
        has expired. A key that follows from the one that this device knows is stored."""
        if not sent:
            raise EnrollError("E215", "it comes without an order")
        order = Order.parse(sent)
        roots = self.device.trust.roots()
        known = self.device.operator
        if known is None:
            raise EnrollError("E215", "this device has received no operator key yet: restart it")
        if not order.is_signed_by(known):  # perhaps a newer key, signed by the known one or by a root
            self.device.learn_operator(operator_key.parse(order.line))
            known = self.device.operator
        if known is None or not order.is_signed_by(known):
            raise EnrollError("E215", "no operator key that this device knows has signed it")
        fields = order.fields()
        if not order.is_for(config):
            raise EnrollError("E215", "the order is about another configuration")
        if not {certificates.fingerprint(root) for root in roots} & set(fields["roots"]):
            raise EnrollError("E215", "the order is for another federation")
        if self.clock() > fields["expires"]:
            raise EnrollError("E216", f"{(self.clock() - fields['expires']) / DAY:.1f} days ago")


def _digest(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()
