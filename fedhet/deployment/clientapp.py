"""The ClientApp of one device, as Flower starts it.

A device builds its half of the method from the configuration in its first job, if its owner's allowlist and the
operator's order permit, and keeps it until its process ends. An enrolled device signs every update.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Message

from fedhet.engine.client_runner import Device
from fedhet.flower import messages as records
from fedhet.flower.client_handlers import client_app
from fedhet.flower.messages import Sign
from fedhet.provenance import source_tree

if TYPE_CHECKING:
    from fedhet.federation.device.allowlist import Allowlist


@lru_cache(maxsize=2)
def signer(run: str) -> Sign | None:
    """The signer of this process's updates of a run, with the identity of the device in FEDHET_STATE; None if that is
    not set."""
    state = os.environ.get("FEDHET_STATE", "")
    if not state:
        return None
    from fedhet.federation.pki.identity import Identity
    from fedhet.federation.pki.update_signature import Signer

    return Signer(Identity.load(Path(state)), run)


@lru_cache(maxsize=2)
def _allowlist(state: str) -> Allowlist:
    """The allowlist of the client with this state folder, read once per process."""
    from fedhet.federation.device.allowlist import Allowlist
    from fedhet.federation.device.state import Device as Client

    return Allowlist.of(Client(Path(state)).about)


def _may_report(module: str) -> bool:
    """Whether the hash of a module's source may be reported to the server: only for fedhet's and allowed packages."""
    state = os.environ.get("FEDHET_STATE", "")
    inside = (*source_tree.PACKAGES, *(_allowlist(state).packages if state else [module]))
    return any(f"{module}.".startswith(f"{package}.") or package.startswith(f"{module}.") for package in inside)


@lru_cache(maxsize=2)
def _device(world: str, state: str) -> Device:
    """Build the device half of a configuration; with a client's folder `state`, only if its allowlist permits.

    Raises EnrollError E213 or E214, and what building raises.
    """
    from fedhet.config import factory

    return factory.device(_allowlist(state).admit(world) if state else json.loads(world))


def _from_message(message: Message) -> Device:
    world = records.read_world(message.content)
    if not world:
        raise ValueError("the job carries no configuration; was it sent by a server of another transport?")
    state = os.environ.get("FEDHET_STATE", "")
    if state:
        from fedhet.federation.device.state import Device as Client
        from fedhet.federation.pki.signed_orders import Guard

        Guard(Client(Path(state))).check(world, records.read_order(message.content))
    return _device(world, state)


client = client_app(_from_message, seal=True, signer=signer, tells=_may_report)
