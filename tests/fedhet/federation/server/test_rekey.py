"""An audit log whose key is lost or damaged: the error names the key file, and the log continues with a new key."""

import json
import sqlite3

import pytest
from typer.testing import CliRunner

from fedhet.cli import main
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import registry_check
from fedhet.federation.server.operator import Federation


@pytest.fixture
def home(tmp_path):
    """A federation with two invitations, of which the second waits to be written to the log."""
    made = Federation.create(tmp_path / "op", "ward", "localhost:9")
    made.invite("st-anna")
    with made.registry.transaction() as session:
        row = session.query(registry_check.ClientRow).one()
        made.note(session, row, "", "invite", again=1)
    made.close()
    return made.folder


def fedhet(home, *words, code="", given=None):
    result = CliRunner().invoke(main.app, [*words, "--home", str(home), "--json"], input=given)
    assert result.exit_code == (EnrollError(code).exit_code if code else 0), result.output
    told = json.loads(result.stdout)
    if code:
        assert told["error"]["code"] == code
        return told["error"]
    return told


def lines(home):
    return [json.loads(line) for line in (home / "audit.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("damage", "why"),
    [(b"", "it is empty"), (b"\x01" * 31, "31 bytes, not 32"), (b"\x01" * 33, "33 bytes, not 32"), (None, "is gone")],
)
def test_a_damaged_or_missing_key_is_named_and_replaced(home, damage, why):
    key, before = home / "audit.key", (home / "audit.jsonl").read_bytes()
    if damage is None:
        key.unlink()
    else:
        key.write_bytes(damage)
    for words in (["audit", "verify"], ["enroll", "invite"], ["clients", "revoke", "st-anna", "--reason", "x"]):
        detail = fedhet(home, *words, code="E324")["detail"]
        assert str(key) in detail and why in detail and "fedhet audit rekey" in detail
    asked = fedhet(home, "audit", "rekey", code="E325")["data"]["lines"]
    assert why in asked[0] and "no fault is found" in asked[1]
    assert (home / "audit.jsonl").read_bytes() == before and key.exists() == (damage is not None)

    done = fedhet(home, "audit", "rekey", "--yes", "--reason", "the disk broke")
    assert (done["unproved"], done["faults"]) == (2, [])
    *_, told = lines(home)
    assert (told["n"], told["action"], told["detail"]["reason"]) == (3, "rekey", "the disk broke")
    assert why in told["detail"]["why"] and told["hash"] == done["head"]
    fedhet(home, "enroll", "invite", "--name", "after")
    verdict = fedhet(home, "audit", "verify", "--head", done["head"])
    assert (verdict["lines"], verdict["unproved"]) == (5, 2), "the line that waited is written, and no alarm"
    assert "altered" not in {row["action"] for row in lines(home)}
    told = CliRunner().invoke(main.app, ["audit", "verify", "--home", str(home)]).output
    assert "lines 1 to 2 are not authenticated by the key: the log was rekeyed in line 3" in told
    assert "authenticates the log" in fedhet(home, "audit", "rekey", "--yes", code="E319")["detail"]


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_an_edit_after_the_log_was_keyed_anew_is_found_before_that_line_too(home, line):
    (home / "audit.key").unlink()
    fedhet(home, "audit", "rekey", "--yes")
    fedhet(home, "enroll", "invite")
    rows = (home / "audit.jsonl").read_bytes().splitlines(keepends=True)
    rows[line - 1] = rows[line - 1].replace(b'"actor":"', b'"actor":"x', 1)
    (home / "audit.jsonl").write_bytes(b"".join(rows))
    assert fedhet(home, "audit", "verify", code="E310")["data"]["line"] == max(3, line)


@pytest.mark.parametrize("forged", ["keyed", "unkeyed"])
def test_who_has_no_key_cannot_pass_lines_off_as_keyed_anew(home, forged):
    from fedhet.federation.pki.canonical_json import canonical
    from fedhet.federation.server.audit_chain import digest_of, line_hash

    before = (home / "audit.jsonl").read_bytes().replace(b'"subject":"st-anna"', b'"subject":"st-anne"')
    body = {"n": 3, "time": 1, "actor": "a", "action": "rekey", "subject": "audit.key", "prev": lines(home)[-1]["hash"]}
    body["detail"] = {"before": digest_of(before.splitlines())}
    if forged == "keyed":
        body["keyed"] = True
    hashed = line_hash(body["prev"], body, None)
    (home / "audit.jsonl").write_bytes(before + canonical({**body, "hash": hashed}) + b"\n")
    (home / "audit.jsonl.head").write_text(f"3 {hashed}\n")
    assert fedhet(home, "audit", "verify", code="E310")["data"]["line"] == 3


def test_what_is_found_without_the_key_is_said_and_kept(home):
    (home / "audit.key").write_bytes(bytes(32))
    with sqlite3.connect(home / "registry.db") as registry:
        registry.execute("UPDATE clients SET state = 'active'")
    rows = (home / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (home / "audit.jsonl").write_bytes(rows[1])
    found = fedhet(home, "audit", "rekey", code="E325")["data"]["lines"]
    assert "does not belong to this log" in found[0] and "line 1: it is numbered 2" in found[1]
    (home / "audit.jsonl").write_bytes(b"".join(rows))
    faults = fedhet(home, "audit", "rekey", "--yes")["faults"]
    assert len(faults) == 2 and "state is 'active', but 'invited'" in faults[0]
    assert lines(home)[-1]["detail"]["faults"] == faults
    assert fedhet(home, "audit", "verify", code="E340")["data"]["differences"] == faults, "and it is not healed by it"


def test_a_change_of_the_key_that_is_broken_off_is_done_again(home, monkeypatch):
    from fedhet.federation.common import private_files

    (home / "audit.key").unlink()
    write = private_files.write_file

    def full(path, *given):
        if path.name == "audit.key":
            raise OSError(28, "No space left on device", str(path))
        write(path, *given)

    with monkeypatch.context() as patch:
        patch.setattr(private_files, "write_file", full)
        fedhet(home, "audit", "rekey", "--yes", code="E321")
    assert fedhet(home, "enroll", "invite", code="E324")
    assert fedhet(home, "audit", "rekey", "--yes")["unproved"] == 3
    fedhet(home, "enroll", "invite")
    assert (fedhet(home, "audit", "verify")["lines"], "altered" in str(lines(home))) == (6, False)
