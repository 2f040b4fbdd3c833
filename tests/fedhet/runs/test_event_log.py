"""The event log: exactly what was written, without partial lines."""

import hashlib

import pytest

from fedhet.runs.event_log import ROWS, Lines, Record, read_rows, write_atomic


def test_the_hash_is_that_of_the_file(tmp_path):
    lines = Lines(tmp_path / "rows")
    for n in range(10):
        lines.write({"n": n, "x": n / 3})
    lines.close()
    assert lines.sha256 == hashlib.sha256((tmp_path / "rows").read_bytes()).hexdigest()


def test_going_on_from_a_cut_gives_the_file_of_an_unbroken_run(tmp_path):
    whole, broken = Lines(tmp_path / "whole"), Lines(tmp_path / "broken")
    for n in range(5):
        whole.write({"n": n})
        broken.write({"n": n})
    cut = broken.size
    broken.write({"lost": True})
    broken.close()
    broken = Lines(tmp_path / "broken", keep=cut)
    for n in range(5, 9):
        whole.write({"n": n})
        broken.write({"n": n})
    whole.close()
    broken.close()
    assert whole.sha256 == broken.sha256
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "broken").read_bytes()


def test_a_file_shorter_than_its_checkpoint_is_an_error(tmp_path):
    (tmp_path / "rows").write_bytes(b"{}\n")
    with pytest.raises(ValueError, match="needs 10"):
        Lines(tmp_path / "rows", keep=10)


def test_half_a_line_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(b'{"a":1}\n{"a":2')
    assert read_rows(path) == [{"a": 1}]
    path.write_bytes(b'{"a":1}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2"):
        read_rows(path)


def test_atomic_writing_leaves_no_part_behind(tmp_path):
    write_atomic(tmp_path / "f", "one")
    write_atomic(tmp_path / "f", "two")
    assert (tmp_path / "f").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_whoever_watches_hears_of_long_instants(tmp_path):
    record, heard = Record(tmp_path), []
    record.tick = lambda: heard.append(record.events.size)
    for n in range(3 * ROWS):
        record.emit(0.0, "assign", {"job": n})
    record.close()
    assert len(heard) == 3 and heard == sorted(set(heard))
