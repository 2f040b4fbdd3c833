"""An update counts if its client is a member at that time and signed this update."""

from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedhet.deployment import clientapp
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.federation.pki.certificates import DAY
from fedhet.federation.pki.update_signature import Signer
from fedhet.federation.server.membership import Members
from fedhet.federation.server.update_verification import Registered
from fedhet.flower import messages as records
from fedhet.numerics import wire_format
from fedhet.numerics.tree import flatten
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Budget, Job, Update

DELTA = flatten({"w": torch.randn(4, 3), "b": torch.randn(3)})
WORLD = QuadraticWorld([1.0] * 2, [0.0, 1.0], [50, 50])
JOBS = {7: Job(7, 0, 4, 0, Budget(5), 0.0), 8: Job(8, 0, 5, 1, Budget(5), 0.0), 9: Job(9, 1, 5, 0, Budget(5), 0.0)}
RUN = "0123456789abcdef"


@pytest.fixture
def members(door):
    opened = Members(door.federation.folder, door.clock)
    yield opened
    opened.close()


def sent(sign, job=7, weight=20.0):
    update = Update(JOBS[job], DELTA, weight, metrics={"loss": 0.5})
    return records.read_answer(records.answer(update, code="", seal=True, sign=sign))


def judged(members, answer, sender=0, run=RUN):
    gate = Gate(sealed=True, verify_signature=Registered(members, run))
    return gate.check(answer, sender, JOBS, DELTA.schema, equal_clients(WORLD))


def code(verdict):
    return verdict.code if isinstance(verdict, Rejected) else "accepted"


def test_a_signed_update_is_let_in_and_an_unsigned_one_is_not(door, members):
    a = door.member("a")
    assert code(judged(members, sent(Signer(a.identity, RUN)))) == "accepted"
    assert code(judged(members, sent(None))) == "unsigned"
    assert code(judged(members, replace(sent(Signer(a.identity, RUN)), signature=""))) == "unsigned"
    assert code(judged(members, replace(sent(Signer(a.identity, RUN)), node=""))) == "unsigned"


def test_what_a_proxy_alters_is_refused(door, members):
    """It sees and can rewrite everything, the seal included; it does not have the key."""
    a = door.member("a")
    good = sent(Signer(a.identity, RUN))
    payload = bytearray(good.payload)
    payload[-1] ^= 1
    forged = replace(good, payload=bytes(payload), sha256=wire_format.digest(payload))
    for altered in (
        forged,
        replace(good, weight=good.weight + 1),
        replace(good, metrics={"loss": 0.4}),
        replace(good, signature="zz"),
        replace(good, signature=good.signature[2:] + good.signature[:2]),
    ):
        assert code(judged(members, altered)) == "signature", altered


def test_an_update_cannot_be_replayed_for_another_job_run_or_version(door, members):
    a = door.member("a")
    good = sent(Signer(a.identity, RUN))
    assert code(judged(members, replace(good, job=8, version=5))) == "signature"
    assert code(judged(members, good, run="another")) == "signature"
    assert code(judged(members, replace(good, version=5))) == "version"
    assert code(judged(members, replace(good, job=70))) == "unsolicited"


def test_an_update_cannot_be_renamed_or_signed_by_another_member(door, members):
    a, b = door.member("a"), door.member("b")
    good = sent(Signer(a.identity, RUN))
    assert code(judged(members, good, sender=1)) == "sender"
    assert code(judged(members, replace(good, client=1, job=9, version=5), sender=1)) == "signature"
    assert code(judged(members, sent(Signer(b.identity, RUN)))) == "signature"
    assert code(judged(members, replace(sent(Signer(b.identity, RUN)), node=a.identity.node_id))) == "signature"


def test_who_may_not_take_part_now_is_refused_whatever_it_signed(door, members):
    a = door.member("a")
    good = sent(Signer(a.identity, RUN))
    door.federation.suspend("a", "audit")
    assert code(judged(members, good)) == "member"
    door.federation.resume("a")
    assert code(judged(members, good)) == "accepted"
    door.clock.ahead = 8 * DAY
    assert code(judged(members, good)) == "member", "its certificate has expired"
    a.renew()
    assert code(judged(members, good)) == "accepted"
    door.federation.revoke("a", "stolen")
    verdict = judged(members, good)
    assert code(verdict) == "member" and "revoked" in verdict.detail


def test_a_device_signs_where_it_has_an_identity_and_nowhere_else(door, members, monkeypatch):
    a = door.member("a")
    monkeypatch.delenv("FEDHET_STATE", raising=False)
    clientapp.signer.cache_clear()
    assert clientapp.signer(RUN) is None
    monkeypatch.setenv("FEDHET_STATE", str(a.folder))
    clientapp.signer.cache_clear()
    assert code(judged(members, sent(clientapp.signer(RUN)))) == "accepted"
    clientapp.signer.cache_clear()


def test_a_signature_that_is_no_text_is_no_signature(door, members):
    a = door.member("a")
    content = records.answer(Update(JOBS[7], DELTA, 20.0), code="", seal=True, sign=Signer(a.identity, RUN))
    head = dict(content.config_records["fedhet"])
    for wrong in (7, 0.5, [1, 2], b"\xff"):
        content["fedhet"] = ConfigRecord({**head, "signature": wrong})
        assert code(judged(members, records.read_answer(RecordDict(dict(content))))) == "signature"
