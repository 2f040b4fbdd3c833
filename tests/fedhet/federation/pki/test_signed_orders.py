"""Signed orders: what the operator signs, what a device accepts, and the change to another operator key."""

import json
from dataclasses import replace

import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from typer.testing import CliRunner

from fedhet.cli import main
from fedhet.config import composition as config
from fedhet.deployment import clientapp
from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import offline_join
from fedhet.federation.device.join import Data
from fedhet.federation.device.state_files import OPERATOR
from fedhet.federation.pki import operator_key, signed_orders
from fedhet.federation.pki.certificates import DAY
from fedhet.federation.pki.signed_orders import Guard, Order
from fedhet.federation.server import offline_approval
from fedhet.federation.server.operator import Federation
from fedhet.flower import messages
from fedhet.flower.compat import claim_identity, set_message_id
from fedhet.flower.execution import execute
from fedhet.numerics import wire_format
from fedhet.runs.experiment import Experiment
from fedhet.types import Budget, Job

CONFIG = '{"work": "some"}'


def give(door, config=CONFIG, days=1.0):
    return Order.sign(door.federation.authority, config, days, door.clock())


def guard(device):
    return Guard(device, device.clock)


def test_a_device_takes_what_its_operator_signed_until_it_expires(door, refused):
    check = guard(door.member("a")).check
    order = give(door)
    check(CONFIG, order.sent)
    refused("E215", check, CONFIG + " ", order.sent)
    refused("E215", check, CONFIG, "")
    refused("E215", check, CONFIG, "{")
    refused("E215", check, CONFIG, "[" * 100_000)
    refused("E215", check, CONFIG, json.dumps({"text": order.text, "signature": order.signature}))
    door.clock.ahead += 1.01 * DAY
    refused("E216", check, CONFIG, order.sent)


def test_an_altered_order_is_refused(door, refused):
    check = guard(door.member("a")).check
    order = give(door)
    other = order.text.replace('"expires":', '"expires": ')
    for changed in (
        replace(order, text=order.text.replace('"expires":1', '"expires":9')),
        replace(order, text=other),
        replace(order, signature=give(door, CONFIG + " ").signature),
        replace(order, signature="no"),
        replace(order, signature=""),
        replace(order, text=""),
    ):
        assert "signed" in str(refused("E215", check, CONFIG, changed.sent))


def test_an_order_of_another_federation_is_refused_even_if_the_key_is_the_same(door, tmp_path, refused):
    device = door.member("a")
    other = Federation.create(tmp_path / "other", "other", "127.0.0.1:1")
    foreign = Order.sign(other.authority, CONFIG, 1.0, door.clock())
    assert "no operator key" in str(refused("E215", guard(device).check, CONFIG, foreign.sent))
    for name in (operator_key.KEY, operator_key.LINE):
        private_files.write_file(other.folder / "ca" / name, (door.federation.folder / "ca" / name).read_bytes())
    shared = Order.sign(other.authority, CONFIG, 1.0, door.clock())
    assert "another federation" in str(refused("E215", guard(device).check, CONFIG, shared.sent))
    other.close()


def test_a_device_that_is_older_than_operator_keys_learns_its_operators_when_it_asks(door, refused):
    device = door.member("a")
    (device.folder / OPERATOR).unlink()
    assert "restart it" in str(refused("E215", guard(device).check, CONFIG, give(door).sent))
    assert device.operator is None, "no job teaches a device whom to believe"
    device.ask("whoami")
    guard(device).check(CONFIG, give(door).sent)


def test_a_home_that_is_older_than_operator_keys_gets_one(door):
    for name in (operator_key.KEY, operator_key.LINE):
        (door.federation.folder / "ca" / name).unlink()
    device = door.member("a")
    assert device.operator is None
    order = give(door)
    device.ask("whoami")
    guard(device).check(CONFIG, order.sent)
    assert (door.federation.folder / "ca" / operator_key.KEY).stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_missing_is_not_made_anew_behind_the_devices_backs(door, refused):
    (door.federation.folder / "ca" / operator_key.KEY).unlink()
    refused("E306", give, door)


def test_devices_follow_to_the_key_that_the_one_they_know_has_named(door, refused):
    authority, device, late = door.federation.authority, door.member("a"), door.member("b")
    old, first = give(door), device.operator
    for _ in range(2):
        operator_key.replace(authority)
        guard(device).check(CONFIG, give(door).sent)
    assert device.operator != first
    guard(late).check(CONFIG, give(door).sent)
    refused("E215", guard(device).check, CONFIG, old.sent)
    assert guard(late).device.operator == device.operator == operator_key.line(authority.folder)[-1]


def rotate(door, *more, code=""):
    words = ["ca", "rotate-operator", "--home", str(door.federation.folder), "--json", *more]
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == (EnrollError(code).exit_code if code else 0), result.output
    return json.loads(result.stdout)


def test_an_operator_replaces_the_key_by_command_and_devices_follow(door, refused):
    authority, device, asks = door.federation.authority, door.member("a"), door.member("b")
    old, first = give(door), device.operator
    guard(device).check(CONFIG, old.sent)
    told = rotate(door, code="E325")["error"]
    assert "--yes" in told["remedy"] and "submit --resume" in told["detail"]
    assert operator_key.line(authority.folder) == (first,), "nothing is done without it"

    told = rotate(door, "--yes")
    newest = operator_key.line(authority.folder)[-1]
    assert told == {"key_sha256": newest.fingerprint, "term": 0, "by": "operator"}
    guard(device).check(CONFIG, give(door).sent)  # by the job
    asks.ask("whoami")  # by the server's answer
    assert device.operator == asks.operator == newest != first
    refused("E215", guard(device).check, CONFIG, old.sent)
    assert Order.is_signed_by(give(door), newest), "fedhet submit signs with it"

    (authority.folder / operator_key.KEY).unlink()  # lost: nobody can name the next one but the root
    assert operator_key.BY_ROOT in rotate(door, "--yes", code="E306")["error"]["detail"]
    assert rotate(door, "--yes", "--compromised")["term"] == 1
    guard(device).check(CONFIG, give(door).sent)
    (authority.folder / "root.key").rename(authority.folder.parent / "root.key")
    assert "put it back" in rotate(door, "--yes", "--compromised", code="E306")["error"]["detail"]
    kept = [row["detail"] for row in door.federation.audit.rows() if row["subject"] == "operator"]
    assert [(row["term"], row["by"], row["compromised"]) for row in kept] == [(0, "operator", False), (1, "root", True)]
    assert kept[0]["key_sha256"] == newest.fingerprint and door.federation.audit.check().lines


def test_nothing_is_replaced_that_the_audit_log_could_not_tell_of(door):
    authority = door.federation.authority
    (door.federation.folder / "audit.key").write_bytes(b"")
    before = {path.name: path.read_bytes() for path in authority.folder.iterdir()}
    rotate(door, "--yes", code="E324")
    for words in (["rotate"], ["passphrase"]):
        result = CliRunner().invoke(main.app, ["ca", *words, "--home", str(door.federation.folder)])
        assert result.exit_code == EnrollError("E324").exit_code and "audit.key: it is empty" in result.output
    assert {path.name: path.read_bytes() for path in authority.folder.iterdir()} == before


def test_a_line_grows_no_longer_than_devices_read_it(door, monkeypatch):
    monkeypatch.setattr(operator_key, "MAX_SUCCESSIONS", 2)
    device = door.member("a")
    rotate(door, "--yes")
    assert operator_key.BY_ROOT in rotate(door, "--yes", code="E306")["error"]["detail"]
    guard(device).check(CONFIG, give(door).sent)
    rotate(door, "--yes", "--compromised")
    guard(device).check(CONFIG, give(door).sent)


def test_the_root_ends_a_stolen_key_and_all_that_it_named(door, tmp_path, refused):
    authority, device, late = door.federation.authority, door.member("a"), door.member("b")
    thief = Federation.create(tmp_path / "thief", "thief", "127.0.0.1:1").authority
    for name in (operator_key.KEY, operator_key.LINE):
        private_files.write_file(thief.folder / name, (authority.folder / name).read_bytes())
    operator_key.replace(thief)
    stolen = Order.sign(thief, CONFIG, 1.0, door.clock())
    assert "another federation" in str(refused("E215", guard(device).check, CONFIG, stolen.sent))
    assert device.operator == operator_key.line(thief.folder)[-1], "it followed the stolen key"
    operator_key.replace(authority, authority.root_pair(""))
    for each in (device, late):
        guard(each).check(CONFIG, give(door).sent)
        refused("E215", guard(each).check, CONFIG, stolen.sent)
        assert each.operator.term == 1
    operator_key.replace(thief)
    refused("E215", guard(device).check, CONFIG, Order.sign(thief, CONFIG, 1.0, door.clock()).sent)
    operator_key.replace(authority)
    guard(device).check(CONFIG, give(door).sent)


def test_a_root_of_another_federation_names_no_key(door, tmp_path):
    device = door.member("a")
    other = Federation.create(tmp_path / "other", "other", "127.0.0.1:1").authority
    known = device.operator
    device.learn_operator(operator_key.replace(other, other.root_pair("")))
    device.learn({"operator": operator_key.to_json(operator_key.line(other.folder))})
    assert device.operator == known


def test_an_interrupted_change_of_the_key_is_finished(door, monkeypatch):
    authority, device = door.federation.authority, door.member("a")
    write = private_files.write_file

    def full(path, *given):
        if path.name == operator_key.LINE:
            raise OSError("full")
        write(path, *given)

    monkeypatch.setattr(private_files, "write_file", full)
    with pytest.raises(OSError):
        operator_key.replace(authority)
    monkeypatch.undo()
    guard(device).check(CONFIG, give(door).sent)
    operator_key.replace(authority)
    (authority.folder / operator_key.KEY).rename(authority.folder / operator_key.NEXT)
    guard(device).check(CONFIG, give(door).sent)


def test_the_key_lies_encrypted_where_there_is_a_passphrase(door, refused):
    authority, device = door.federation.authority, door.member("a")
    assert "operator.key" in authority.encrypt("", "correct horse")
    assert b"ENCRYPTED" in (authority.folder / operator_key.KEY).read_bytes()
    guard(device).check(CONFIG, give(door).sent)
    operator_key.replace(authority)
    assert b"ENCRYPTED" in (authority.folder / operator_key.KEY).read_bytes()
    guard(device).check(CONFIG, give(door).sent)
    again = type(authority).load(authority.folder)
    refused("E322", operator_key.load, again)
    assert operator_key.line(again.folder), "whoever serves needs no passphrase to tell the public half"


def test_a_device_that_joins_by_files_learns_it_too(door, tmp_path):
    device = offline_join.request(
        tmp_path / "dev", tmp_path / "r.zip", Data(), name="far", measured={}, clock=door.clock
    )
    offline_approval.answer(door.federation, tmp_path / "r.zip", tmp_path / "a.zip")
    offline_join.accept(device, tmp_path / "a.zip", door.federation.authority.fingerprint)
    guard(device).check(CONFIG, give(door).sent)


@pytest.mark.parametrize(
    "line", [{}, {"line": []}, {"line": [1]}, {"line": [{"public": "x", "term": 0, "by": "first", "signature": ""}]}]
)
def test_a_line_that_is_none_is_refused(line, refused):
    refused("E311", operator_key.read, line)


def test_a_run_goes_on_with_the_order_it_has_and_is_signed_anew_if_it_is_the_same(door, tmp_path, refused):
    authority = door.federation.authority

    def renew():
        return signed_orders.renew(authority, tmp_path, CONFIG, 30.0, door.clock())

    assert renew() and not renew()
    (authority.folder / operator_key.KEY).rename(tmp_path / "away")
    assert not renew(), "an order that holds needs no key"
    (tmp_path / "away").rename(authority.folder / operator_key.KEY)
    door.clock.ahead += 31 * DAY
    assert renew() and Order.of(tmp_path).fields()["expires"] > door.clock()
    old = Order.of(tmp_path)
    operator_key.replace(authority)
    assert renew(), "the key is another"
    refused("E217", signed_orders.renew, authority, tmp_path, CONFIG + " ", 30.0, door.clock())
    kept = Order.of(tmp_path)
    replace(kept, signature=kept.signature[:-8] + "AAAAAAA=").store(tmp_path)
    refused("E217", renew)
    old.store(tmp_path)
    operator_key.replace(authority, authority.root_pair(""))
    refused("E217", renew)


def test_an_order_holds_across_a_change_of_the_root(door):
    device = door.member("a")
    order = give(door)
    door.federation.authority.rotate_root(door.clock())
    guard(device).check(CONFIG, order.sent)
    guard(device).check(CONFIG, give(door).sent)


@pytest.fixture(scope="module")
def world():
    """A small configuration as a server sends it, and what the server offers."""
    resolved = config.resolved(config.compose(["data=synthetic", "data.samples=60", "fleet.clients=2"]))
    experiment = Experiment.of(resolved)
    space = experiment.method.space
    job = Job(0, 0, 0, 0, Budget(1), 0.0)
    return experiment.for_devices(), job, space.offer(space.begin(experiment.world.model()), job)


def test_a_job_is_done_for_an_order_alone_and_the_next_one_is_done(door, world, tmp_path, monkeypatch):
    device, (text, job, payload) = door.member("a"), world
    monkeypatch.setenv("FEDHET_STATE", str(device.folder))
    claim_identity(1)
    encoded = bytes(wire_format.encode(payload))
    record = ArrayRecord()
    record["tree"] = messages.array(encoded)

    def reply(number, config, order):
        content = messages.request(
            job, record, bytes_up=0, batch=1, sha256=wire_format.digest(encoded), world=config, order=order
        )
        asked = Message(content, 10, "train")
        set_message_id(asked, f"m{number}")
        return execute(clientapp.client, asked, Context(1, 10, {"partition-id": 0}, RecordDict(), {})).reply

    refusals = [reply(0, text, ""), reply(1, text.replace('"seed": 0', '"seed": 1'), give(door, text).sent)]
    hostile = text.replace("strategies.rules.mean.Mean", "subprocess.Popen")
    refusals.append(reply(2, hostile, give(door, hostile).sent))
    assert [one.error.reason[:19] for one in refusals] == [
        "EnrollError: E215: ",
        "EnrollError: E215: ",
        "EnrollError: E213: ",
    ]
    done = reply(3, text, give(door, text).sent)
    assert not done.has_error(), done.error
    assert messages.read_answer(done.content).client == 0


@pytest.mark.parametrize(
    "change",
    [{"turn": -1}, {"id": "0"}, {"version": 1.5}, {"held": -2}, {"sent": float("nan")}, {"task": 3},
     {"budget": Budget(10.0)}, {"budget": Budget(1, 0, 0.0)}, {"budget": Budget(-1)}],
)  # fmt: skip
def test_a_job_whose_numbers_cannot_be_is_refused(change):
    with pytest.raises(wire_format.MalformedUpdate):
        messages.check_job(replace(Job(0, 0, 0, 0, Budget(1), 0.0), **change))
    messages.check_job(Job(0, 0, 0, 0, Budget(1, 4, 0.5), 1.0, "train", 3))


def test_a_device_does_no_work_of_the_servers(door, world, monkeypatch):
    claim_identity(1)
    asked = Message(RecordDict(), 10, "query.server_task")
    set_message_id(asked, "m")
    assert execute(clientapp.client, asked, Context(1, 10, {}, RecordDict(), {})).reply.has_error()


def test_a_server_hears_of_no_code_but_fedhets_and_what_jobs_may_use(door, monkeypatch):
    from flwr.app import ConfigRecord

    device = door.member("a")
    monkeypatch.setenv("FEDHET_STATE", str(device.folder))
    claim_identity(1)
    clientapp._allowlist.cache_clear()
    names = ["fedhet.numerics.wire_format", "strategies.rules.mean", "json", "cryptography.x509", "fedhetx"]
    asked = Message(RecordDict({"fedhet": ConfigRecord({"modules": json.dumps(names)})}), 10, "query.profile")
    set_message_id(asked, "m")
    reply = execute(clientapp.client, asked, Context(1, 10, {}, RecordDict(), {})).reply
    code = json.loads(reply.content["fedhet"]["code"])
    assert [name for name in names if code[name] != "closed"] == names[:2]


def test_an_error_has_its_own_number():
    assert EnrollError("E215").exit_code == 55 and EnrollError("E213").exit_code == 53
