"""Verification of signed updates against the registry, as a check of the update gate."""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.engine.answer import Answer
from fedhet.engine.update_validation import Rejected
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import update_signature
from fedhet.federation.server.membership import Members

CODES = {"E201": "member", "E202": "member", "E205": "signature"}
"""The gate's reason for each error code of `Members.check`."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Accepts an answer of a run only if it is signed by a client that is active now."""

    members: Members
    run: str

    def __call__(self, answer: Answer) -> Rejected | None:
        if not answer.signature or not answer.node:
            return Rejected("unsigned", f"client {answer.client} did not sign its update")
        try:
            signature = bytes.fromhex(answer.signature)
        except ValueError:
            return Rejected("signature", "the signature is not hexadecimal")
        statement = update_signature.statement_of(
            self.run, answer.node, answer.job, answer.version, answer.payload, answer.weight, answer.metrics
        )
        try:
            self.members.check(answer.client, statement, signature)
        except EnrollError as error:
            return Rejected(CODES[error.code], error.detail)
        return None
