"""A run's order: the operator's signature over the configuration that devices build, which no server can forge.

`fedhet submit` signs and the run folder keeps the order, so that a run which goes on needs no key. A device builds
what a known operator key has signed for its federation and until the order expires; that the same order is carried out
twice within that time is no harm that a server could not do otherwise.

    order  canonical JSON {"config": SHA-256 of the text, "expires", "issued": seconds, "roots": [SHA-256, ...]}
    signature  ECDSA over H(domain, order)

The text is signed as it travels, byte by byte, so there are no two readings of it.
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
"""In a run folder: its order."""
LONGEST = 1 << 16
"""Characters of an order that are read."""


@dataclass(frozen=True, slots=True)
class Order:
    """A signed order as it travels with every job: the order's text, its signature, and the line of operator keys
    (operator_key.py) as JSON, by which a device follows to the key that signed."""

    text: str
    signature: str
    line: str

    @classmethod
    def give(cls, authority: Authority, config: str, days: float, now: float) -> Order:
        """Sign a configuration. Raises EnrollError E306."""
        key = operator_key.load(authority)
        told = {
            "config": _digest(config),
            "issued": int(now),
            "expires": int(now + days * DAY),
            "roots": [certificates.fingerprint(root) for root in authority.roots()],
        }
        text = canonical(told).decode()
        line = json.dumps(operator_key.tell(operator_key.line(authority.folder)))
        return cls(text, operator_key.sign(key, DOMAIN, text.encode()), line)

    @classmethod
    def of(cls, folder: Path) -> Order | None:
        """The order in a run folder; None if there is none. Raises EnrollError E306 for a damaged one."""
        try:
            told = json.loads((folder / NAME).read_text())
            return cls(str(told["text"]), str(told["signature"]), str(told["line"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise EnrollError("E306", f"{folder / NAME}: {error!r}"[:160]) from None

    @classmethod
    def parse(cls, sent: str) -> Order:
        """What `sent` gives. Raises EnrollError E215."""
        try:
            told = json.loads(sent) if len(sent) <= LONGEST else {}
            return cls(str(told["text"]), str(told["signature"]), str(told["line"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EnrollError("E215", "its order cannot be read") from None

    @property
    def sent(self) -> str:
        """The order as it travels."""
        return json.dumps(asdict(self), sort_keys=True)

    def keep(self, folder: Path) -> None:
        """Write it into a run folder."""
        private_files.write_file(folder / NAME, self.sent + "\n", 0o644)

    def is_for(self, config: str) -> bool:
        """Whether it is about this configuration. Says nothing of who signed it."""
        return bool(self.told().get("config") == _digest(config))

    def told(self) -> dict[str, Any]:
        """What it says. Raises EnrollError E215."""
        try:
            told = json.loads(self.text)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise EnrollError("E215", "its order cannot be read")
        return told

    def by(self, key: operator_key.Succession) -> bool:
        """Whether this operator key signed it."""
        public = operator_key.public_key(key.public)
        return operator_key.verified(public, self.signature, DOMAIN, self.text.encode())


def renew(authority: Authority, folder: Path, config: str, days: float, now: float) -> bool:
    """Give a run that is to go on an order that holds; whether it was signed anew.

    The configuration of a run folder is signed again only if the operator's key signed the same before, for whoever
    runs the server may have written there since. Raises EnrollError E306 and E217.
    """
    held, line = Order.of(folder), operator_key.ensure(authority)
    if held is not None and not held.is_for(config):
        raise EnrollError("E217", f"{folder / 'config.yaml'} is not what {folder / NAME} is about")
    trusted = [key for key in line if key.term == line[-1].term]  # not those that the root has ended
    if held is not None and not any(held.by(key) for key in trusted):
        raise EnrollError("E217", f"{folder / NAME} was signed by a key that is not this federation's, or no more")
    if held is not None and held.by(line[-1]) and now < int(held.told().get("expires", 0)) - days * DAY / 2:
        return False
    Order.give(authority, config, days, now).keep(folder)
    return True


@dataclass(frozen=True, slots=True)
class Guard:
    """A device's check of the orders that jobs bring."""

    device: Device
    clock: Callable[[], float] = time.time

    def check(self, config: str, sent: str) -> None:
        """Raises EnrollError E215 unless the operator ordered this configuration for this federation, E216 if that was
        too long ago. A key that follows the one this device knows is known from then on."""
        if not sent:
            raise EnrollError("E215", "there is no order with it")
        order = Order.parse(sent)
        roots = self.device.trust.roots()
        known = self.device.operator
        if known is None:
            raise EnrollError("E215", "this device has not heard of an operator key yet: start it again")
        if not order.by(known):  # perhaps that of a key which the known one, or a root, has named since
            self.device.learn_operator(operator_key.parse(order.line))
            known = self.device.operator
        if known is None or not order.by(known):
            raise EnrollError("E215", "no operator key that this device knows has signed it")
        told = order.told()
        if not order.is_for(config):
            raise EnrollError("E215", "the order is about another configuration")
        if not {certificates.fingerprint(root) for root in roots} & set(told["roots"]):
            raise EnrollError("E215", "the order is for another federation")
        if self.clock() > told["expires"]:
            raise EnrollError("E216", f"{(self.clock() - told['expires']) / DAY:.1f} days ago")


def _digest(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()
