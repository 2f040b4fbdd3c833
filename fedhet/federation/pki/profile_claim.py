"""Profile claims: what a device declares and measures about itself, signed, as integers in fixed units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import signed_requests
from fedhet.federation.pki.identity import Identity

DECLARED = frozenset(
    {
        *("cores", "memory_bytes", "gpu", "gpu_memory_bytes", "uplink_bytes_per_s", "downlink_bytes_per_s"),
        *("examples", "partition", "partitions", "labels", "max_rank", "software"),
    }
)


LINK = ("uplink_bytes_per_s", "downlink_bytes_per_s", "latency_us")


MEASURED = frozenset({"step_us", "step_iqr_us", "repeats", "batch", "noisy", *LINK})


TEXT = frozenset({"gpu", "software"})


MAX_LABELS = 4096
"""Most labels a histogram may have."""
MAX_LABEL_CHARACTERS = 100


def make(own: Identity, declared: Mapping[str, Any], measured: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Create a signed claim. Raises EnrollError E303 for an unknown field or a value of a wrong form."""
    claim = {"node": own.node_id, "declared": dict(declared), "measured": dict(measured)}
    check_fields(claim)
    return signed_requests.sign_body(own, "profile", claim, now)


def check_fields(claim: Mapping[str, Any]) -> None:
    """Raises EnrollError E303 for an unknown field or a value of a wrong form."""
    for name, known in (("declared", DECLARED), ("measured", MEASURED)):
        column = claim.get(name)
        if not isinstance(column, Mapping) or not set(column) <= known:
            raise EnrollError("E303", f"{name}: the fields are {', '.join(sorted(known))}")
        for key, value in column.items():
            if key == "labels":
                _labels(value)
            elif key in TEXT:
                if not isinstance(value, str) or len(value) > 200:
                    raise EnrollError("E303", f"{key} must be a string of at most 200 characters")
            elif type(value) is not int or not 0 <= value < 2**53:
                raise EnrollError("E303", f"{key}={value!r:.40} must be an integer from 0 to 2^53")


def _labels(value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
        raise EnrollError("E303", f"labels must be at most {MAX_LABELS} counts")
    if not all(type(count) is int and 0 <= count < 2**53 for count in value.values()):
        raise EnrollError("E303", "labels must be counts")
    if any(len(name) > MAX_LABEL_CHARACTERS for name in value):
        raise EnrollError("E303", f"a label's name has at most {MAX_LABEL_CHARACTERS} characters")
