"""The audit log: every change is found, at its line."""

import multiprocessing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhet.enroll.audit import Audit
from fedhet.enroll.errors import EnrollError


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    audit = Audit(tmp_path_factory.mktemp("audit") / "audit.jsonl", clock=lambda: 1.8e9)
    for n in range(5):
        audit.append("operator", "approve", f"client-{n}", serial="ab", empty=None)
    return audit


def copy(log, folder, change):
    (folder / "audit.jsonl").write_bytes(change(log.path.read_bytes()))
    (folder / "audit.jsonl.head").write_bytes(log.path.with_name("audit.jsonl.head").read_bytes())
    return Audit(folder / "audit.jsonl")


def test_an_untouched_log_is_whole(log, tmp_path):
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
    assert torn.verify().bad == 6
    torn.append("operator", "revoke")
    assert (torn.verify().lines, torn.verify().bad) == (6, None)


def test_a_line_that_was_written_before_its_head_is_whole(log, tmp_path):
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
