"""Three columns about a client, kept apart: what it declares, what was measured on it, what the server observed.

A device signs its claim, in integers of fixed units. A claim is a claim: the scheduler's profile takes observation over
measurement, and measurement over nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import signed_requests
from fedhet.federation.pki.profile_claim import check_fields
from fedhet.federation.server.registry import Client
from fedhet.population.profile import Profile

DISAGREE = 3.0
"""A measured speed that differs from the observed one by more than this factor is flagged."""


def check(public: bytes, node: str, claim: Any, now: float, skew: float) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Declared and measured columns and the nonce of a claim that this node made now. Raises E303, E203 or E115."""
    if not isinstance(claim, Mapping) or claim.get("node") != node:
        raise EnrollError("E303", "it is not about this node")
    nonce = signed_requests.check_body(public, "profile", claim, now, skew, "E303")
    check_fields(claim)
    return dict(claim["declared"]), dict(claim["measured"]), nonce


def examples(client: Client) -> int:
    """How many training examples a client counts with: what it declares, as far as an operator approved it.

    0 if it declares none or none were approved: a run then counts it with what its part of the run's data holds, see
    `fedhet.deployment.live_run`.
    """
    return min(int(client.declared.get("examples", 0)), client.approved_examples or 0)


def believed(client: Client) -> Profile | None:
    """What a schedule is told, or None as long as no speed is known. A claim of 0 is no claim."""
    speed = client.observed.get("sec_per_step") or client.measured.get("step_us", 0) / 1e6
    if not speed:
        return None
    told = client.declared
    links = {**told, **client.measured, **client.observed}
    return Profile(
        name=client.name,
        device_class=client.device_class,
        num_examples=examples(client),
        max_rank=int(told.get("max_rank", 0)),
        sec_per_step=float(speed),
        memory_bytes=float(told.get("memory_bytes") or math.inf),
        uplink_bytes_per_s=float(links.get("uplink_bytes_per_s") or math.inf),
        downlink_bytes_per_s=float(links.get("downlink_bytes_per_s") or math.inf),
        latency_s=client.measured.get("latency_us", 0) / 1e6,
    )


def doubtful(client: Client) -> str:
    """Why the measured column is not to be trusted, or ""."""
    if client.measured.get("noisy"):
        return "noisy"
    seen, said = client.observed.get("sec_per_step"), client.measured.get("step_us", 0) / 1e6
    if seen and said and not 1 / DISAGREE <= seen / said <= DISAGREE:
        return f"observed {seen:.3g} s a step, measured {said:.3g}"
    return ""
