"""The gate's first checks: who sent an answer, to which job, and whether this client may answer it now."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from fedhet.engine.answer import Answer
from fedhet.types import ClientId, Job, JobId


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why the gate rejected an answer: a stable code, and a sentence."""

    code: str
    detail: str


SignatureCheck = Callable[[Answer], Rejected | None]
"""Checks the membership and signature of an enrolled client; None if the answer is valid."""


def check_identity(
    answer: Answer,
    job: Job,
    sender: ClientId,
    waiting: Mapping[JobId, Job],
    *,
    suspended: Container[ClientId],
    per_buffer: int | None,
    code: str,
    verify_signature: SignatureCheck | None,
) -> Rejected | None:
    """None if `sender` may answer `job` with this answer. `waiting` are the jobs whose updates wait to be combined, at
    most `per_buffer` of one client (None: any number); `code` is the required hash of the code, empty for any."""
    if answer.client != sender or job.client != sender:
        return Rejected("sender", f"client {sender} answered job {job.id} of client {job.client} as {answer.client}")
    if answer.version != job.version:
        return Rejected("version", f"base version {answer.version}, the job's is {job.version}")
    if sender in suspended:
        return Rejected("suspended", f"client {sender} is suspended")
    if per_buffer is not None:
        count = sum(1 for other in waiting.values() if other.client == sender)
        if count >= per_buffer:
            return Rejected("quota", f"{count} updates of client {sender} wait to be combined already")
    if code and answer.code != code:
        return Rejected("code", "the client runs other code than the server where the method needs the same")
    return None if verify_signature is None else verify_signature(answer)
