"""A client's profile in three separate columns: declared by the device, measured on it, observed by the server.

A device signs its declared and measured values, in integers of fixed units. A schedule's profile takes an observed
value where there is one, else the measured one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import signed_requests
from fedhet.federation.pki.profile_claim import check_fields
from fedhet.federation.server.registry import Client
from fedhet.population.profile import Profile

MAX_SPEED_RATIO = 3.0
"""Factor between measured and observed seconds per step above which the measurement is flagged."""


def check(public: bytes, node: str, claim: Any, now: float, skew: float) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Verify a profile claim of this node; returns its declared column, its measured column and its nonce.

    Raises EnrollError E303, E203 or E115.
    """
    if not isinstance(claim, Mapping) or claim.get("node") != node:
        raise EnrollError("E303", "it is not about this node")
    nonce = signed_requests.check_body(public, "profile", claim, now, skew, "E303")
    check_fields(claim)
    return dict(claim["declared"]), dict(claim["measured"]), nonce


def examples(client: Client) -> int:
    """How many training examples a client is weighted with: the declared number, at most the approved one.

    0 if it declares none or none were approved: a run then uses the number of examples in its part of the run's data
    (`fedhet.deployment.membership_monitor`).
    """
    return min(int(client.declared.get("examples", 0)), client.approved_examples or 0)


def believed(client: Client) -> Profile | None:
    """The profile that a schedule gets; None while no speed is known. A declared 0 counts as not declared."""
    speed = client.observed.get("sec_per_step") or client.measured.get("step_us", 0) / 1e6
    if not speed:
        return None
    declared = client.declared
    links = {**declared, **client.measured, **client.observed}
    return Profile(
        name=client.name,
        device_class=client.device_class,
        num_examples=examples(client),
        max_rank=int(declared.get("max_rank", 0)),
        sec_per_step=float(speed),
        memory_bytes=float(declared.get("memory_bytes") or math.inf),
        uplink_bytes_per_s=float(links.get("uplink_bytes_per_s") or math.inf),
        downlink_bytes_per_s=float(links.get("downlink_bytes_per_s") or math.inf),
        latency_s=client.measured.get("latency_us", 0) / 1e6,
    )


def doubtful(client: Client) -> str:
    """Why the measured column is doubtful; "" if it is not."""
    if client.measured.get("noisy"):
        return "noisy"
    observed, measured = client.observed.get("sec_per_step"), client.measured.get("step_us", 0) / 1e6
    if observed and measured and not 1 / MAX_SPEED_RATIO <= observed / measured <= MAX_SPEED_RATIO:
        return f"observed {observed:.3g} s a step, measured {measured:.3g}"
    return ""
