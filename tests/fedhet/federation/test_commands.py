"""The federation commands, as a person or a script uses them."""

import contextlib
import json
import os
import pty
import select
import socket
import stat
import sys
import zipfile

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from fedhet.cli import federation as cli_enroll
from fedhet.federation.common import private_files
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.device import commands
from fedhet.federation.pki import certificates, identity, key_encryption
from fedhet.federation.pki.identity import Identity
from fedhet.federation.pki.passphrase import obtain
from fedhet.federation.server import registry_writes
from fedhet.federation.server.operator import Federation

MEASURED = {"step_us": 900, "step_iqr_us": 400, "repeats": 9, "batch": 32, "noisy": 1}


@pytest.fixture
def fedhet(tmp_path, monkeypatch):
    app = typer.Typer()
    cli_enroll.mount(app)
    monkeypatch.setenv("FEDHET_HOME", str(tmp_path / "op"))
    monkeypatch.setenv("FEDHET_CLIENT", str(tmp_path / "dev"))
    monkeypatch.setattr(commands, "_measured", lambda seconds: MEASURED)

    def run(*arguments, code=0, **given):
        result = CliRunner().invoke(app, [str(a) for a in arguments], **given)
        assert result.exit_code == code, result.output + repr(result.exception)
        return json.loads(result.stdout) if "--json" in arguments else result.output

    return run


def code_of(answer):
    return answer["error"]["code"]


def test_a_federation_is_founded_once(fedhet, tmp_path):
    made = fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9", "--federation", "oncology", "--json")
    assert len(made["root_sha256"]) == 64
    assert fedhet("audit", "verify", "--json")["lines"] == 1
    again = EnrollError("E306").exit_code
    assert code_of(fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9", "--json", code=again)) == "E306"
    wrong = EnrollError("E319").exit_code
    assert code_of(fedhet("ca", "init", "--no-passphrase", "--endpoint", "nowhere", "--json", code=wrong)) == "E319"


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        (["--passphrase-file", "short"], "E323", "at least 8 characters"),
        (["--root", "short"], "E306", "go together"),
        (["--root", "short", "--signer", "false"], "E319", "short contains no certificate"),
        (["--root", "none", "--signer", "false"], "E317", "none: No such file"),
        (["--root", "foreign", "--signer", "false"], "E309", "false ended with 1"),
        (["--federation", "x" * 57], "E319", "--federation has 57 bytes, at most 56"),
        (["--host", "kühn.example"], "E319", "is not ASCII"),
    ],
)
def test_a_federation_that_cannot_be_founded_leaves_nothing_behind(fedhet, tmp_path, monkeypatch, options, code, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(key_encryption, "COST", 4)
    private_files.write_file(tmp_path / "short", "horse")
    key = ec.generate_private_key(ec.SECP384R1())
    private_files.write_file(
        tmp_path / "foreign", certificates.text([certificates.authority("root", key, 9.0, 1.8e9, 1)])
    )
    kind = () if "--passphrase-file" in options else ("--no-passphrase",)
    init = ("ca", "init", "--endpoint", "localhost:9", "--json")
    for _ in range(2):
        refused = fedhet(*init, *kind, *options, code=EnrollError(code).exit_code)["error"]
        assert refused["code"] == code and why in refused["detail"]
        assert not (tmp_path / "op").exists()
    private_files.write_file(tmp_path / "words", "horse battery")
    fedhet(*init, "--passphrase-file", "words")


def test_commands_without_a_federation_or_a_client_say_so(fedhet):
    again = EnrollError("E306").exit_code
    for command in (["clients", "list"], ["enroll", "invite"], ["enroll", "pending"], ["submit"]):
        assert code_of(fedhet(*command, "--json", code=again)) == "E306"
    assert "E306" in fedhet("clients", "list", code=again)
    for verb in ("poll", "renew", "leave", "profile", "run"):
        answer = fedhet("client", verb, *([] if verb == "run" else ["--json"]), code=EnrollError("E316").exit_code)
        assert "E316" in answer if verb == "run" else code_of(answer) == "E316"
    checks = fedhet("client", "doctor", "--json", code=1)
    assert [row["name"] for row in checks if not row["ok"]] == ["state folder"] and "fedhet join" in checks[0]["fix"]


def test_a_name_that_cannot_be_is_refused_with_what_can(fedhet):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    wrong = EnrollError("E117").exit_code
    for name in ("st mary", "ü", "x" * 64, "a/b"):
        assert code_of(fedhet("enroll", "invite", "--name", name, "--json", code=wrong)) == "E117"
    assert code_of(fedhet("enroll", "invite", "--name", "a", "--count", 2, "--json", code=wrong)) == "E117"
    assert "fedhet enroll invite" in fedhet("clients", "list") and "none" in fedhet("enroll", "pending")


def test_invitations_for_many_go_to_a_private_file(fedhet, tmp_path):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    out = tmp_path / "invites.csv"
    fedhet("enroll", "invite", "--count", 3, "-o", out)
    lines = out.read_text().splitlines()
    assert lines[0] == "name,token" and len(lines) == 4
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [c["state"] for c in fedhet("clients", "list", "--json")] == ["invited"] * 3
    assert len(fedhet("enroll", "invite", "--count", 2, "--json")) == 2
    refusal = fedhet("enroll", "invite", "--class", "mainframe", "--json", code=EnrollError("E319").exit_code)
    assert code_of(refusal) == "E319"


def joined_offline(fedhet, tmp_path):
    root = fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9", "--json")["root_sha256"]
    fedhet(
        "client", "request", "-o", tmp_path / "req.zip", "--partition", "1/3", "--examples", "40", "--data", "/mnt/x"
    )
    fedhet("enroll", "sign", tmp_path / "req.zip", "-o", tmp_path / "ans.zip", "--name", "st-mary", "--class", "silo")
    return root


def test_a_device_joins_by_files_alone(fedhet, tmp_path):
    root = joined_offline(fedhet, tmp_path)
    told = fedhet("client", "import", tmp_path / "ans.zip", "--root-fingerprint", root.upper(), "--json")
    assert (told["state"], told["name"], told["number"]) == ("active", "st-mary", 0)
    known = fedhet("clients", "show", "st-mary", "--json")
    assert (known["device_class"], known["address"], known["partition"]) == ("silo", "offline", 1)
    assert "noisy" in fedhet("clients", "list")
    assert "/mnt/x" not in json.dumps(known)
    fedhet("enroll", "sign", tmp_path / "req.zip", "-o", tmp_path / "again.zip")  # the first answer was lost
    assert len(fedhet("clients", "list", "--json")) == 1


def test_an_answer_of_another_root_or_altered_on_the_way_is_refused(fedhet, tmp_path):
    root = joined_offline(fedhet, tmp_path)
    stop = EnrollError("E103").exit_code
    refusal = fedhet("client", "import", tmp_path / "ans.zip", "--root-fingerprint", "0" * 64, "--json", code=stop)
    assert code_of(refusal) == "E103"
    with zipfile.ZipFile(tmp_path / "ans.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"localhost:9", b"localhost:8"))
    refusal = fedhet("client", "import", tmp_path / "bad.zip", "--root-fingerprint", root, "--json", code=stop)
    assert "signature" in refusal["error"]["detail"]
    assert not (tmp_path / "dev" / "client.pem").exists()


def test_an_altered_request_file_is_refused(fedhet, tmp_path):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    fedhet("client", "request", "-o", tmp_path / "req.zip", "--examples", "40")
    with zipfile.ZipFile(tmp_path / "req.zip") as archive:
        body = json.loads(archive.read("request.json"))
    body["name"] = "another"
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("request.json", json.dumps(body))
    out = tmp_path / "ans.zip"
    refusal = fedhet("enroll", "sign", tmp_path / "bad.zip", "-o", out, "--json", code=EnrollError("E111").exit_code)
    assert code_of(refusal) == "E111"
    missing = fedhet("enroll", "sign", tmp_path / "gone.zip", "-o", out, "--json", code=EnrollError("E317").exit_code)
    assert code_of(missing) == "E317" and "gone.zip" in missing["error"]["detail"]
    (tmp_path / "no.zip").write_bytes(b"PK")
    assert code_of(fedhet("enroll", "sign", tmp_path / "no.zip", "-o", out, "--json", code=25)) == "E115"


def test_suspending_resuming_and_revoking_follow_the_states(fedhet, tmp_path):
    joined_offline(fedhet, tmp_path)
    assert fedhet("clients", "suspend", "st-mary", "--json")["state"] == "suspended"
    assert fedhet("clients", "resume", "st-mary", "--json")["state"] == "active"
    wrong = EnrollError("E211").exit_code
    assert code_of(fedhet("clients", "resume", "st-mary", "--json", code=wrong)) == "E211"
    assert code_of(fedhet("enroll", "reject", "st-mary", "--reason", "x", "--json", code=wrong)) == "E211"
    assert fedhet("clients", "revoke", "st-mary", "--reason", "stolen", "--json")["reason"] == "stolen"
    assert code_of(fedhet("clients", "revoke", "nobody", "--reason", "x", "--json", code=50)) == "E210"
    fedhet("ca", "export-crl", "-o", tmp_path / "crl.pem")
    assert (tmp_path / "crl.pem").read_bytes().startswith(b"-----BEGIN X509 CRL")
    fedhet("ca", "rotate")
    actions = [row["action"] for row in fedhet("audit", "show", "--json")]
    assert actions == ["found", "invite", "enrol", "approve", "suspend", "resume", "revoke", "rotate"]


def test_an_approval_of_several_tells_who_is_in_although_one_is_not(fedhet, tmp_path):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    fedhet("enroll", "invite", "--name", "a")
    with contextlib.closing(Federation(tmp_path / "op")) as federation, federation.registry.transaction() as session:
        row = registry_writes.by_name(session, "a")
        own = Identity.create(tmp_path / "own")
        csr = certificates.request(identity.new_tls_key(), own.node_id)
        registry_writes.apply(
            session, row, registry_writes.Applicant(own.node_id, own.public, own.flower_public, csr), 0.0
        )
    answer = fedhet("enroll", "approve", "a", "nobody", "--json", code=EnrollError("E210").exit_code)
    assert code_of(answer) == "E210" and answer["error"]["data"] == {"approved": ["a"]}
    assert fedhet("clients", "show", "a", "--json")["state"] == "active"


def test_an_input_that_makes_no_sense_is_an_object_too(fedhet, tmp_path):
    for words in (["--on-interrupt", "dance"], ["--resume", tmp_path, "strategy=fedavg"]):
        assert code_of(fedhet("submit", *words, "--json", code=2)) == "E319"
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    wrong = EnrollError("E319").exit_code
    answer = fedhet("clients", "list", "--state", "lost", "--json", code=wrong)["error"]
    assert answer["code"] == "E319" and "suspended" in answer["detail"]
    assert code_of(fedhet("enroll", "invite", "--label", "ward", "--json", code=wrong)) == "E319"


def test_a_path_that_cannot_be_used_is_named(fedhet, tmp_path):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    out = tmp_path / "nowhere" / "file"
    for words in (["ca", "export-crl", "-o", out], ["enroll", "invite", "-o", out], ["client", "request", "-o", out]):
        answer = fedhet(*words, "--json", code=EnrollError("E317").exit_code)["error"]
        assert answer["code"] == "E317" and "nowhere" in answer["detail"]
    fedhet("client", "request", "-o", tmp_path / "ask.zip", "--json")


def test_an_audit_log_that_is_gone_is_not_in_order(fedhet, tmp_path):
    assert code_of(fedhet("audit", "verify", "--json", code=EnrollError("E306").exit_code)) == "E306"
    assert code_of(fedhet("audit", "show", "--json", code=EnrollError("E306").exit_code)) == "E306"
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    for path in (tmp_path / "op").glob("audit.jsonl*"):
        path.unlink()
    assert code_of(fedhet("audit", "verify", "--json", code=EnrollError("E310").exit_code)) == "E310"


def test_a_head_that_has_not_the_form_of_one_is_no_alarm(fedhet):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    wrong, altered = EnrollError("E319").exit_code, EnrollError("E310").exit_code
    for head in ("zz", "12 " + "0" * 64, "0" * 63, "٣" * 64):
        answer = fedhet("audit", "verify", "--head", head, "--json", code=wrong)
        assert code_of(answer) == "E319" and "64 hexadecimal digits" in answer["error"]["detail"]
    good = fedhet("audit", "verify", "--json")["head"]
    assert fedhet("audit", "verify", "--head", f" {good.upper()}", "--json")["head"] == good
    assert code_of(fedhet("audit", "verify", "--head", "0" * 64, "--json", code=altered)) == "E310"


@pytest.mark.parametrize("endpoint", ["nowhere", "::1:8443", ":8443", "host:٣", "a b:1", "host:0", "127.0.0.1:99999"])
def test_an_endpoint_is_refused_for_what_is_wrong_with_it(fedhet, endpoint):
    wrong = EnrollError("E319").exit_code
    told = fedhet("ca", "init", "--no-passphrase", "--endpoint", endpoint, "--json", code=wrong)["error"]["detail"]
    assert ("is not between 1 and 65535" if endpoint[-1] in "09" else "of the form host:port") in told
    assert f"--endpoint {endpoint}" in told


def test_a_port_out_of_range_is_refused_before_anything_starts(fedhet):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    wrong = EnrollError("E319").exit_code
    for port in (99999, -1):
        answer = fedhet("serve", "--host", "127.0.0.1", "--port", port, "--json", code=wrong)
        assert answer["error"]["detail"] == f"--port {port}: port {port} is not between 0 and 65535"


def test_a_tampered_audit_log_is_found_at_its_line(fedhet, tmp_path):
    joined_offline(fedhet, tmp_path)
    log = tmp_path / "op" / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"subject":"st-mary"', b'"subject":"st-marx"', 1))
    refusal = fedhet("audit", "verify", "--json", code=EnrollError("E310").exit_code)
    assert (code_of(refusal), refusal["error"]["data"]["line"]) == ("E310", 2)
    log.write_bytes(b"\n".join([log.read_bytes().splitlines()[0], b"\x1b[2J{", b""]))
    told = fedhet("audit", "show", code=EnrollError("E310").exit_code)
    assert "found" in told and "line 2 cannot be read" in told and "\x1b" not in told


def test_a_federation_is_founded_with_a_passphrase_and_every_key_is_encrypted(fedhet, tmp_path, monkeypatch):
    monkeypatch.setattr(key_encryption, "COST", 4)
    (tmp_path / "word").write_text("correct horse\n")
    (tmp_path / "word").chmod(0o600)
    fedhet("ca", "init", "--endpoint", "localhost:9", "--passphrase-file", tmp_path / "word")
    keys = {p.name: p.read_bytes() for p in (tmp_path / "op" / "ca").iterdir() if b"PRIVATE KEY" in p.read_bytes()}
    assert {"issuing.key", "operator.key", "server.pem"} <= set(keys)
    assert not [name for name, data in keys.items() if b"-----BEGIN PRIVATE KEY" in data]
    fedhet("ca", "export-crl", "-o", tmp_path / "crl", "--passphrase-file", tmp_path / "word")


def test_keys_are_encrypted_unless_one_says_otherwise(fedhet, tmp_path, monkeypatch):
    monkeypatch.setattr(key_encryption, "COST", 4)
    for name in ("FEDHET_PASSPHRASE", "FEDHET_PASSPHRASE_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    no, wrong = EnrollError("E322").exit_code, EnrollError("E323").exit_code
    told = fedhet("ca", "init", "--endpoint", "localhost:9", code=no)
    assert "no terminal" in told and "--no-passphrase" in told and not (tmp_path / "op").exists()
    told = fedhet("ca", "init", "--endpoint", "localhost:9", "--no-passphrase")
    assert "NOT ENCRYPTED" in told and "fedhet ca passphrase" in told

    (tmp_path / "word").write_text("correct horse\n")
    (tmp_path / "word").chmod(0o644)
    given = ["--new-passphrase-file", tmp_path / "word"]
    assert code_of(fedhet("ca", "passphrase", *given, "--json", code=EnrollError("E305").exit_code)) == "E305"
    (tmp_path / "word").chmod(0o600)
    assert "in the clear" in fedhet("ca", "passphrase", *given)
    assert b"BEGIN PRIVATE KEY" not in b"".join(p.read_bytes() for p in (tmp_path / "op" / "ca").iterdir())

    fedhet("enroll", "invite")  # which needs no key
    assert code_of(fedhet("ca", "export-crl", "-o", tmp_path / "crl", "--json", code=no)) == "E322"
    monkeypatch.setenv("FEDHET_PASSPHRASE", "wrong horse")
    assert code_of(fedhet("ca", "export-crl", "-o", tmp_path / "crl", "--json", code=wrong)) == "E323"
    assert "FEDHET_PASSPHRASE" not in os.environ, "what this process starts does not get it"
    fedhet("ca", "export-crl", "-o", tmp_path / "crl", "--passphrase-file", tmp_path / "word")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "fedhet-passphrase").write_text("correct horse")
    fedhet("ca", "rotate", "--compromised")
    monkeypatch.setenv("FEDHET_NEW_PASSPHRASE", "battery staple")
    fedhet("ca", "passphrase")
    assert code_of(fedhet("ca", "rotate", "--json", code=wrong)) == "E323"
    monkeypatch.setenv("FEDHET_PASSPHRASE", "battery staple")
    fedhet("ca", "rotate", "--root")
    assert "battery" not in (tmp_path / "op" / "audit.jsonl").read_text()
    monkeypatch.setenv("FEDHET_PASSPHRASE", "wrong horse")
    assert code_of(fedhet("serve", "--host", "127.0.0.1", "--port", 0, "--json", code=wrong)) == "E323"


def test_a_passphrase_is_typed_twice_is_not_shown_and_is_not_asked_for_in_the_background(monkeypatch):
    for name in ("FEDHET_PASSPHRASE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)

    def code(work):
        try:
            return 0 if work() == "correct horse" else 1
        except EnrollError as error:
            return error.exit_code

    pid, terminal = pty.fork()
    if not pid:
        sys.stdin, sys.stderr = os.fdopen(0, "r"), os.fdopen(2, "w")
        other = os.fork()
        if not other:
            os.setpgid(0, 0)  # as the shell does with `fedhet serve &`
            os._exit(code(lambda: obtain(None)))
        behind = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
        os._exit(code(lambda: obtain(None, again=True)) if behind == EnrollError("E322").exit_code else 99)
    said = b""
    for times in (1, 2):
        while said.count(b": ") < times:
            assert select.select([terminal], [], [], 60)[0], said
            said += os.read(terminal, 1000)
        os.write(terminal, b"correct horse\n")
    with contextlib.suppress(OSError):  # the terminal is gone when its process is
        while select.select([terminal], [], [], 60)[0] and (more := os.read(terminal, 1000)):
            said += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said
    assert b"Again" in said and b"correct" not in said


def test_serving_without_tls_is_refused_off_loopback(fedhet):
    fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9")
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        refusal = fedhet("serve", "--insecure", "--host", host, code=EnrollError("E304").exit_code)
        assert "E304" in refusal


def test_a_port_that_is_taken_is_named_before_anything_starts(fedhet, tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        fedhet("ca", "init", "--no-passphrase", "--endpoint", f"localhost:{port}")
        taken = EnrollError("E318").exit_code
        here = ["--host", "127.0.0.1", "--json"]
        assert str(port) in fedhet("serve", *here, code=taken)["error"]["detail"]
    assert not (tmp_path / "op" / "flower").exists()


def test_a_bad_token_is_refused_without_repeating_it(fedhet):
    secret = "fh1.localhost:9.secretsecret"
    assert secret not in fedhet("join", "-", input=secret, code=EnrollError("E108").exit_code)


@pytest.mark.parametrize("declared", [["--partition", "3/3"], ["--partition", "x"], ["--labels", "/nowhere"]])
def test_a_data_declaration_that_makes_no_sense_is_refused(fedhet, tmp_path, declared):
    wrong = EnrollError("E303").exit_code
    assert code_of(fedhet("client", "request", "-o", tmp_path / "r.zip", *declared, "--json", code=wrong)) == "E303"


def test_the_doctor_names_what_is_wrong_and_goes_on(fedhet, tmp_path):
    joined_offline(fedhet, tmp_path)
    fedhet("client", "import", tmp_path / "ans.zip", "--root-fingerprint", fedhet_root(tmp_path))
    (tmp_path / "dev" / "identity.key").chmod(0o644)
    checks = {row["name"]: row for row in fedhet("client", "doctor", "--json", code=1)}
    assert "E305" in checks["state folder"]["found"] and checks["state folder"]["fix"]
    assert not checks["server"]["ok"] and checks["torch"]["ok"]


def fedhet_root(tmp_path):
    from fedhet.federation.pki.ca import Authority

    return Authority.load(tmp_path / "op" / "ca").fingerprint


def test_the_unit_restarts_except_after_final_refusals(fedhet, tmp_path):
    assert code_of(fedhet("client", "service", "--json", code=EnrollError("E316").exit_code)) == "E316"
    fedhet("client", "request", "-o", tmp_path / "req.zip")
    text = fedhet("client", "service")
    final = {EnrollError(code).exit_code for code in ("E109", "E202", "E209", "E212")}
    line = next(row for row in text.splitlines() if row.startswith("RestartPreventExitStatus="))
    assert set(map(int, line.partition("=")[2].split())) == final


def test_root_and_issuing_key_are_rotated_and_invitations_carry_labels(fedhet, tmp_path):
    first = fedhet("ca", "init", "--no-passphrase", "--endpoint", "localhost:9", "--json")["root_sha256"]
    assert fedhet("ca", "rotate", "--json")["serial"]
    second = fedhet("ca", "rotate", "--root", "--json")["root_sha256"]
    assert second != first
    invited = fedhet("enroll", "invite", "--owner", "st-mary", "--label", "ward=icu", "--json")
    assert second in invited["token"]
    [client] = fedhet("clients", "list", "--json")
    assert client["labels"] == {"owner": "st-mary", "ward": "icu"}
    refused = fedhet("enroll", "invite", "--label", "ward", "--json", code=EnrollError("E319").exit_code)
    assert code_of(refused) == "E319"
    assert fedhet("audit", "verify", "--json")["lines"] == 4
    answer = fedhet("client", "rotate", "--json", code=EnrollError("E316").exit_code)
    assert code_of(answer) == "E316"
