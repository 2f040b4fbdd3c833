"""The audit log: every change is found, at its line."""

import errno
import fcntl
import json
import multiprocessing
import resource
import signal
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.pki.canonical_json import canonical
from fedhet.federation.server import audit_chain, audit_file
from fedhet.federation.server.audit_log import Audit


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    audit = Audit(tmp_path_factory.mktemp("audit") / "audit.jsonl", clock=lambda: 1.8e9)
    for n in range(5):
        audit.append("operator", "approve", f"client-{n}", serial="ab", empty=None)
    return audit


def copy(log, folder, change):
    (folder / "audit.jsonl").write_bytes(change(log.path.read_bytes()))
    for name in ("audit.jsonl.head", "audit.key"):
        (folder / name).write_bytes(log.path.with_name(name).read_bytes())
        (folder / name).chmod(0o600)
    return Audit(folder / "audit.jsonl")


def test_an_unchanged_log_is_valid(log, tmp_path):
    assert (log.verify().lines, log.verify().bad) == (5, None)
    assert Audit(tmp_path / "none.jsonl").verify().lines == 0


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=settings.default.max_examples * 3 // 2,
)
@given(st.data())
def test_a_changed_byte_is_found_at_its_line(log, tmp_path, data):
    content = log.path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda b: b != content[at]))
    verdict = copy(log, tmp_path, lambda c: c[:at] + bytes([new]) + c[at + 1 :]).verify()
    assert verdict.bad is not None
    # A line feed that goes away joins two lines; the bad line is then the first of them.
    assert verdict.bad == content[:at].count(b"\n") + 1


@pytest.mark.parametrize("gone", range(5))
def test_a_missing_line_is_found(log, tmp_path, gone):
    def cut(content):
        lines = content.splitlines(keepends=True)
        return b"".join(lines[:gone] + lines[gone + 1 :])

    assert copy(log, tmp_path, cut).verify().bad == gone + 1
    with pytest.raises(EnrollError, match="E310"):
        copy(log, tmp_path, cut).check()


def test_swapped_lines_are_found(log, tmp_path):
    def swap(content):
        lines = content.splitlines(keepends=True)
        return b"".join([lines[0], lines[2], lines[1], *lines[3:]])

    assert copy(log, tmp_path, swap).verify().bad == 2


def test_a_torn_last_line_is_cut_off_by_the_next_append(log, tmp_path):
    torn = copy(log, tmp_path, lambda c: c + b'{"n":6,"time":18')
    assert (torn.verify().bad, torn.verify().torn) == (None, 16), "nobody was told that it was written"
    torn.append("operator", "revoke")
    assert (torn.verify().lines, torn.verify().bad, torn.verify().torn) == (6, None, 0)


def test_a_line_written_before_its_head_is_valid(log, tmp_path):
    ahead = copy(log, tmp_path, lambda c: c)
    ahead.append("operator", "revoke")
    ahead.path.with_name("audit.jsonl.head").write_bytes(log.path.with_name("audit.jsonl.head").read_bytes())
    assert ahead.verify().bad is None
    ahead.append("operator", "revoke")
    assert (ahead.verify().lines, ahead.verify().bad) == (7, None)


def _append(path):
    for _ in range(10):
        Audit(path).append("somebody", "something")


def test_processes_that_write_at_once_leave_one_chain(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(tmp_path / "a.jsonl",)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    verdict = Audit(tmp_path / "a.jsonl").verify()
    assert (verdict.lines, verdict.bad) == (30, None)


def forged(log, **line):
    """A line that follows the last one as well as somebody without the key can make it."""
    last = json.loads(log.path.read_bytes().splitlines()[-1])
    body = {"n": last["n"] + 1, "time": 1, "actor": "operator", "action": "approve", "subject": "x", "detail": {}}
    body |= {"prev": last["hash"], **line}
    return canonical({**body, "hash": audit_chain.line_hash(last["hash"], body, line.get("key"))}) + b"\n"


@pytest.mark.parametrize("line", [{}, {"keyed": True}, {"keyed": True, "ref": "0" * 16}])
def test_a_forged_last_line_is_found(log, tmp_path, line):
    altered = copy(log, tmp_path, lambda c: c + forged(log, **line))
    assert altered.verify().bad == 6
    head = altered.path.with_name("audit.jsonl.head")
    head.write_text(f"6 {json.loads(altered.path.read_bytes().splitlines()[-1])['hash']}\n")
    assert altered.verify().bad == 6


@pytest.mark.parametrize("head", [None, "", "4 {hash}", "4 {hash} {mac}", "4 {hash} ffff", "5 {old} {mac}", "-1 x"])
def test_lines_cut_off_with_the_head_made_to_fit_are_found(log, tmp_path, head):
    cut = copy(log, tmp_path, lambda c: b"".join(c.splitlines(keepends=True)[:4]))
    path = cut.path.with_name("audit.jsonl.head")
    _, old, mac = path.read_text().split()
    if head is None:
        path.unlink()
    else:
        path.write_text(head.format(hash=json.loads(cut.path.read_bytes().splitlines()[-1])["hash"], old=old, mac=mac))
    assert cut.verify().bad == 5
    cut.append("operator", "revoke")  # which does not heal it
    assert cut.verify().bad == 5 and "found altered" in cut.verify().why
    cut.append("operator", "revoke")
    assert cut.verify().bad == 5


def test_a_log_without_its_key_or_with_another_is_not_in_order(log, tmp_path):
    copied = copy(log, tmp_path, lambda c: c)
    key = copied.path.with_name("audit.key")
    key.write_bytes(bytes(32))
    assert copied.verify().bad == 1
    key.unlink()
    for use in (copied.verify, lambda: copied.append("operator", "revoke"), lambda: copied.sign(b"")):
        with pytest.raises(EnrollError, match=r"E324.*/audit\.key is gone.*fedhet audit rekey"):
            use()
    copied.path.unlink()
    assert copied.verify().bad == 1


def test_a_stored_head_detects_a_restored_earlier_log(log, tmp_path):
    grown = copy(log, tmp_path, lambda c: c)
    earlier = {p: p.read_bytes() for p in tmp_path.iterdir()}
    kept = grown.append("operator", "revoke", "st-mary")
    assert grown.verify(kept).bad is None
    grown.append("operator", "invite")
    assert grown.verify(kept).bad is None
    for path, content in earlier.items():
        path.write_bytes(content)
    assert grown.verify().bad is None and grown.verify(kept).bad == 6
    with pytest.raises(EnrollError, match="E310"):
        grown.check(kept)


def test_a_log_of_an_earlier_version_goes_on_keyed(tmp_path):
    old, previous = b"", "0" * 64
    for n in (1, 2):
        body = {"n": n, "time": 1, "actor": "a", "action": "b", "subject": "", "detail": {}, "prev": previous}
        previous = audit_chain.line_hash(previous, body, None)
        old += canonical({**body, "hash": previous}) + b"\n"
    (tmp_path / "audit.jsonl").write_bytes(old)
    (tmp_path / "audit.jsonl.head").write_text(f"2 {previous}\n")
    log = Audit(tmp_path / "audit.jsonl")
    assert (log.verify().lines, log.verify().bad, log.is_keyed) == (2, None, False)
    log.append("operator", "revoke")
    assert (log.verify().lines, log.verify().bad, log.is_keyed) == (3, None, True)
    log.path.write_bytes(log.path.read_bytes() + forged(log))
    assert "keyed" in log.verify().why


def _until_killed(path):
    while True:
        Audit(path).append("somebody", "something", text="x" * 3000)


def test_killed_appends_leave_a_valid_log(tmp_path):
    path, context = tmp_path / "a.jsonl", multiprocessing.get_context("fork")
    for n in range(12):
        writers = [context.Process(target=_until_killed, args=(path,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        end = time.monotonic() + 0.04 + 0.007 * n
        while time.monotonic() < end:
            assert Audit(path).verify().bad is None, "nor is there a false alarm while they write"
        for writer in writers:
            writer.kill()
            writer.join(10)
        assert Audit(path).verify().bad is None
    Audit(path).append("the", "last")
    assert Audit(path).verify().torn == 0


def _on_a_full_disk(path, more, codes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more,) * 2)
    for _ in range(3):
        try:
            Audit(path).append("somebody", "something")
            codes.put(None)
        except OSError as error:
            codes.put(error.errno)


@pytest.mark.parametrize("more", [0, 1, 100])
def test_a_full_disk_breaks_nothing(tmp_path, more):
    path, context = tmp_path / "a.jsonl", multiprocessing.get_context("fork")
    Audit(path).append("the", "first")
    codes = context.Queue()
    writer = context.Process(target=_on_a_full_disk, args=(path, more, codes))
    writer.start()
    assert [codes.get(timeout=20) for _ in range(3)] == [errno.EFBIG] * 3
    writer.join(10)
    assert (Audit(path).verify().lines, Audit(path).verify().bad, Audit(path).verify().torn) == (1, None, 0)
    Audit(path).append("the", "second")
    assert (Audit(path).verify().lines, Audit(path).verify().bad) == (2, None)


@pytest.mark.parametrize("use", [lambda log: log.append("a", "b"), lambda log: log.verify()], ids=["append", "verify"])
def test_a_log_locked_by_a_stopped_process_is_an_error_and_no_hang(tmp_path, monkeypatch, use):
    monkeypatch.setattr(audit_file, "LOCK_S", 0.1)
    log = Audit(tmp_path / "audit.jsonl")
    log.append("a", "b")
    with log.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(EnrollError, match=r"E320.*was locked for 0\.1 s"):
            use(log)
    use(log)
    assert log.verify().bad is None
