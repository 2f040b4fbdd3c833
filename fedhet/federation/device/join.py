"""Enrolment of a device: verify the server, generate keys, measure, apply, wait for the operator's approval."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

import fedhet
from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import benchmark
from fedhet.federation.device.server_connection import Link, fetch_root
from fedhet.federation.device.state import Device
from fedhet.federation.pki import profile_claim, signed_requests
from fedhet.federation.pki.canonical_json import b64
from fedhet.federation.pki.identity import Identity
from fedhet.federation.pki.invitation import Token
from fedhet.federation.pki.tls import trusting


@dataclass(frozen=True, slots=True)
class Data:
    """A device's declaration of its data. `path` is not sent; `labels` counts examples by label, or is empty."""

    path: str = ""
    examples: int = 0
    partition: int | None = None
    partitions: int | None = None
    labels: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.partition is None) != (self.partitions is None):
            raise ValueError("partition and partitions go together")
        if self.partition is not None and self.partitions is not None and not 0 <= self.partition < self.partitions:
            raise ValueError(f"partition={self.partition} must be in [0, {self.partitions})")
        if self.labels and self.examples and sum(self.labels.values()) != self.examples:
            raise ValueError(f"labels count {sum(self.labels.values())} examples, examples={self.examples}")

    def declared(self) -> dict[str, Any]:
        """The part that is sent to the server."""
        declared: dict[str, Any] = {"examples": self.examples or sum(self.labels.values())}
        if self.partition is not None:
            declared |= {"partition": self.partition, "partitions": self.partitions}
        return {**declared, "labels": dict(self.labels)} if self.labels else declared


def begin(
    folder: Path, line: str, data: Data | None = None, *, name: str = "", seconds: float = 3.0,
    measured: Mapping[str, int] | None = None, clock: Callable[[], float] = time.time,
) -> dict[str, Any]:  # fmt: skip
    """Apply with a token; returns the server's answer. `seconds` is the duration of the benchmark.

    A device that lost the answer can repeat this with the same token and folder. Raises EnrollError; E103 before
    anything secret is sent.
    """
    token = Token.parse(line)
    root = fetch_root(token.url, token.root)
    device = prepare(folder, data or Data(), clock=clock)
    device.trust.write(x509.load_pem_x509_certificates(root))
    body = application(device, name=name, measured=benchmark.run(seconds) if measured is None else measured)
    body = signed_requests.sign_body(
        device.identity, "enrol", {**body, "token": token.id, "secret": token.secret}, clock()
    )
    with Link(token.url, trusting(device.trust.file)) as link:
        answer = link.call("POST", "/v1/enroll/join", json.dumps(body).encode())
    device.note(endpoint=token.endpoint)
    return store_answer(device, answer)


def prepare(folder: Path, data: Data, *, clock: Callable[[], float] = time.time) -> Device:
    """Create a state folder with keys and data declaration. Raises EnrollError E306 if a client uses it already."""
    device = Device(folder, clock)
    if (folder / "client.pem").exists():
        raise EnrollError("E306", f"{folder} is the client {device.about.get('name')!r} already")
    if not (folder / "identity.key").exists():
        Identity.create(folder)
    device.note(data=data.path, declared=data.declared(), state="new")
    return device


def application(device: Device, *, name: str, measured: Mapping[str, int]) -> dict[str, Any]:
    """An application without token and signature: public keys, certificate request, profile claim, version."""
    own = device.identity
    claim = profile_claim.make(own, {**benchmark.hardware(), **device.about["declared"]}, measured, device.clock())
    private_files.write_file(device.folder / "profile.json", json.dumps(claim, indent=1, sort_keys=True) + "\n")
    keys = {"public": b64(own.public), "flower_public": own.flower_public, "csr": device.request().decode()}
    return {**keys, "name": name, "profile": claim, "version": fedhet.__version__}


def update_profile(device: Device, found: Mapping[str, int], *, send: bool = True) -> dict[str, Any]:
    """Create a claim from new measurements over earlier ones, send it unless `send` is false, and store it."""
    declared = {**benchmark.hardware(), **device.about["declared"]}
    claim = profile_claim.make(device.identity, declared, {**measured(device), **found}, device.clock())
    if send:
        device.ask("profile", claim)
    private_files.write_file(device.folder / "profile.json", json.dumps(claim, indent=1, sort_keys=True) + "\n")
    return claim


def measured(device: Device) -> Mapping[str, int]:
    """The measured values of this device's last claim. Raises EnrollError E316 if it never joined."""
    _ = device.about
    return dict(json.loads(private_files.read_private(device.folder / "profile.json"))["measured"])


def store_answer(device: Device, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Store the server's answer, and the certificate if it contains one."""
    device.learn(answer)
    device.note(**{key: answer[key] for key in ("name", "node", "number", "state") if key in answer})
    if "chain" in answer and (device.folder / "pending.csr").exists():
        device.accept(str(answer["chain"]).encode())
    return {k: v for k, v in answer.items() if k != "chain"}


def poll(device: Device) -> dict[str, Any]:
    """Poll for the state of the application. Raises EnrollError E109 if it was rejected."""
    body = signed_requests.sign_body(device.identity, "poll", {"node": device.identity.node_id}, device.clock())
    with device.link() as link:
        return store_answer(device, link.call("POST", "/v1/enroll/poll", json.dumps(body).encode()))


def wait(
    device: Device, seconds: float, nap: Callable[[float], None] = time.sleep,
    ticks: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:  # fmt: skip
    """Poll until the operator has decided, also while the server is out of reach. Raises E105 after `seconds`."""
    end = ticks() + seconds
    while True:
        pause = 5.0
        try:
            answer = poll(device)
            if answer["state"] != "pending":
                return answer
            pause = min(60.0, float(answer.get("retry_s", pause)))
        except EnrollError as error:
            if error.code not in ("E307", "E112"):
                raise
            pause = float(error.data.get("seconds", pause))
        if ticks() + pause > end:
            raise EnrollError("E105", f"after {seconds:g} s; ask again with: fedhet client poll")
        nap(pause)
