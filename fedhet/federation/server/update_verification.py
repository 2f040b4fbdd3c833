"""Both ends of a signed update: the device that signs what it sends, the server that holds it against the registry."""

from __future__ import annotations

from dataclasses import dataclass

from fedhet.engine.answer import Answer
from fedhet.engine.update_validation import Rejected
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki import update_signature
from fedhet.federation.server.membership import Members

CODES = {"E201": "member", "E202": "member", "E205": "signature"}
"""A member's refusal as the gate's."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Lets the answers of one run through that a member who may take part at this moment has signed."""

    members: Members
    run: str

    def __call__(self, answer: Answer) -> Rejected | None:
        if not answer.signature or not answer.node:
            return Rejected("unsigned", f"client {answer.client} did not sign its update")
        try:
            signature = bytes.fromhex(answer.signature)
        except ValueError:
            return Rejected("signature", "it is not hexadecimal")
        told = update_signature.about(
            self.run, answer.node, answer.job, answer.version, answer.payload, answer.weight, answer.metrics
        )
        try:
            self.members.check(answer.client, told, signature)
        except EnrollError as error:
            return Rejected(CODES[error.code], error.detail)
        return None
