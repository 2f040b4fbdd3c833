"""The registry against the audit log: an edit is named by client and field; an interrupted change is no edit."""

import contextlib
import json
import sqlite3

import pytest
from typer.testing import CliRunner

from fedhet.cli import main
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import join
from fedhet.federation.server import registry_check
from fedhet.federation.server.operator import Federation


def verify(home, *more, code=0):
    result = CliRunner().invoke(main.app, ["audit", "verify", "--home", str(home), "--json", *more])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def differences(federation):
    with federation.registry.transaction() as session:
        return registry_check.differences(session, federation.audit)


@pytest.fixture
def ward(door):
    """Clients in every state that there is, each after some life."""
    for name in ("active", "suspended", "revoked", "left", "rotated"):
        door.member(name, join.Data(examples=7))
    door.device("active").renew()
    door.device("rotated").rotate()
    join.update_profile(door.device("active"), {"batch": 64})
    door.federation.weigh("active", 5)
    door.federation.suspend("suspended")
    door.federation.revoke("revoked", "stolen")
    door.device("left").ask("leave")
    door.begin("pending", door.invite("pending")[1], join.Data(examples=2))
    door.invite("invited")
    door.invite("invited")
    door.federation.reject("invited", "no")
    door.invite("expected")
    return door


EDITS = {
    "state": "UPDATE clients SET state = 'active' WHERE name = 'suspended'",
    "partition": "UPDATE clients SET partition = 9 WHERE name = 'active'",
    "examples": "UPDATE clients SET declared = json_set(declared, '$.examples', 700) WHERE name = 'active'",
    "approved_examples": "UPDATE clients SET approved_examples = 700 WHERE name = 'active'",
    "keys": "UPDATE clients SET public = x'00' WHERE name = 'active'",
    "node": f"UPDATE clients SET node = '{'0' * 32}' WHERE name = 'active'",
    "name": "UPDATE clients SET name = 'active2' WHERE name = 'active'",
    "class": "UPDATE clients SET device_class = 'silo' WHERE name = 'active'",
    "owner": "UPDATE clients SET labels = '{\"owner\": \"x\"}' WHERE name = 'active'",
    "certificates": "UPDATE certificates SET denied = NULL",
    "invitation": "UPDATE tokens SET hash = x'00' WHERE used IS NULL",
    "is not in the registry": "DELETE FROM clients WHERE name = 'pending'",
    "not in the log": "",
    "values of a wrong type": "UPDATE clients SET declared = '[1]' WHERE name = 'active'",
}


def test_every_edit_is_named_by_its_client_and_field(ward):
    home = ward.federation.folder
    assert differences(ward.federation) == []
    told = verify(home)
    assert told["lines"] == len(list(ward.federation.audit.rows()))
    assert verify(home, "--head", told["head"])["lines"] == told["lines"]
    assert verify(home, "--head", "0" * 64, code=EnrollError("E310").exit_code)["error"]["code"] == "E310"
    for field, statement in EDITS.items():
        with contextlib.closing(sqlite3.connect(home / "registry.db")) as file:
            columns = [row[1] for row in file.execute("PRAGMA table_info(clients)")]
            if field == "not in the log":  # the columns in the order of this file
                given = {"number": "99", "name": "'extra'", "node": "NULL", "public": "NULL", "flower_public": "NULL"}
                chosen = ", ".join(given.get(column, f'"{column}"') for column in columns)
                statement = f"INSERT INTO clients SELECT {chosen} FROM clients WHERE name = 'active'"
            copied = sqlite3.connect(":memory:")
            file.backup(copied)
            file.execute(statement)
            file.commit()
            found = differences(ward.federation)
            assert found and all(field in line for line in found), (field, found)
            copied.backup(file)
            copied.close()
    assert differences(ward.federation) == []
    with contextlib.closing(sqlite3.connect(home / "registry.db")) as file:
        file.execute(EDITS["state"])
        file.commit()
    refused = verify(home, code=EnrollError("E340").exit_code)["error"]
    assert refused["code"] == "E340" and "state is 'active', but 'suspended' in line" in refused["detail"]
    assert len(refused["data"]["differences"]) == 1


def test_a_line_that_could_not_be_written_waits_and_is_written_once(door, monkeypatch, caplog):
    federation = door.federation
    with monkeypatch.context() as patch:  # killed, or the disk full, after the change is on the disk
        patch.setattr(type(federation.audit), "extend", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        federation.invite("a")
    assert "No space left" in caplog.text
    assert [row["action"] for row in federation.audit.rows()] == ["found"]
    assert differences(federation) == [] and verify(federation.folder)["lines"] == 1
    federation.invite("b")
    assert [(r["action"], r["subject"]) for r in federation.audit.rows()][1:] == [("invite", "a"), ("invite", "b")]
    with monkeypatch.context() as patch:  # killed after the line and before it is forgotten
        patch.setattr(registry_check, "delete", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        federation.invite("c")
    federation.invite("d")
    assert [r["subject"] for r in federation.audit.rows()][1:] == ["a", "b", "c", "d"]
    assert differences(federation) == [] and verify(federation.folder)["lines"] == 5


def test_a_change_that_is_not_made_leaves_no_line(door, refused):
    door.invite("a")
    refused("E104", door.invite, "A")
    refused("E211", door.federation.approve, "a")
    assert [r["action"] for r in door.federation.audit.rows()] == ["found", "invite"]


def test_a_pending_line_signed_without_the_key_is_detected(door):
    door.invite("a")
    with door.federation.registry.transaction() as session:
        line = door.federation.audit.line("operator", "approve", "a")
        session.add(registry_check.WaitingLineRow(content=registry_check.canonical(line), mac=bytes(32)))
    door.invite("b")
    assert "found altered" in door.federation.audit.verify().why


def test_an_older_federation_is_compared_from_its_next_change_on(door, tmp_path):
    federation = door.federation
    door.invite("a")
    door.invite("b")
    log, previous, old = federation.audit.path, "0" * 64, b""
    from fedhet.federation.server.audit_chain import line_hash

    for n, row in enumerate(list(federation.audit.rows()), 1):  # as a version without key and fields wrote it
        body = {key: row[key] for key in ("time", "actor", "action", "subject")} | {"n": n, "prev": previous}
        body["detail"] = {key: value for key, value in row["detail"].items() if key != "client"}
        previous = line_hash(previous, body, None)
        old += registry_check.canonical({**body, "hash": previous}) + b"\n"
    log.write_bytes(old)
    log.with_name("audit.jsonl.head").write_text(f"3 {previous}\n")
    log.with_name("audit.key").unlink()
    assert differences(federation) == [] and verify(federation.folder)["lines"] == 3
    federation.invite("c")
    assert [r["action"] for r in federation.audit.rows()][3:] == ["adopt", "invite"]
    assert differences(federation) == [] and verify(federation.folder)["lines"] == 5
    with federation.registry.transaction() as session:
        session.query(registry_check.ClientRow).filter_by(name="a").update({"device_class": "silo"})
    assert "class is 'silo', but 'edge' in line 4 (adopt)" in differences(federation)[0]


def test_a_federation_and_a_second_opening_of_it_write_one_chain(door):
    with contextlib.closing(Federation(door.federation.folder)) as other:
        for n in range(4):
            (other if n % 2 else door.federation).invite(f"client-{n}")
    assert differences(door.federation) == [] and door.federation.audit.verify().bad is None
