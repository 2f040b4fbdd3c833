"""Why a job failed, from the error reply to its message."""

from __future__ import annotations

import re

from flwr.app import Message

from fedhet.flower.compat import ErrorCode

LOST_MESSAGE = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Error codes of a SuperLink for a message that it deleted, or whose upload was aborted."""

REFUSAL = re.compile(r"EnrollError: (E21[3-8]: .*)")
"""The reason in an error reply of a device that refuses a job's configuration."""


def is_refusal(reply: Message) -> bool:
    """Whether the device refuses the job's configuration, and so will refuse every job of this run."""
    return REFUSAL.match(reply.error.reason or "") is not None


def failure_reason(reply: Message) -> str:
    """The reason for the event log and the counts: a short cause for the client's own errors, Flower's code for the
    rest."""
    error = reply.error
    text = (error.reason or "").strip().splitlines()
    if text and (refusal := REFUSAL.match(text[0])) is not None:
        return refusal[1][:600]
    detail = text[0][:200] if text else ""
    if error.code == ErrorCode.NODE_UNAVAILABLE:
        return detail if detail in ("dropout", "offline", "memory") else "node unavailable"
    if error.code in LOST_MESSAGE:
        return f"no reply: {detail}"
    if error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION:
        return f"client error: {detail}"
    if error.code == ErrorCode.CLIENT_APP_CRASHED:
        return f"client crashed: {detail}"
    return f"flower error {error.code}: {detail}"
