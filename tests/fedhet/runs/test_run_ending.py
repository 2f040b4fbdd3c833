"""A live run records its end last; a killed run, or one that lost its SuperLink, does not."""

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from fedhet.flower import reply_stream
from fedhet.runs import run_ending
from fedhet.runs.run_ending import FAILED, RunEnding
from fedhet.runs.write_ahead_log import alone
from fedhet.system.file_lock import occupied


def test_what_a_run_raises_is_kept_with_its_trace(tmp_path):
    RunEnding(FAILED, "an earlier life's").write(tmp_path)
    with pytest.raises(ValueError), run_ending.recorded(tmp_path, reply_stream.lost):
        assert run_ending.read(tmp_path) is None
        raise ValueError("lr=-1 must be positive")
    told = run_ending.read(tmp_path)
    assert (told.how, told.why) == (FAILED, "ValueError: lr=-1 must be positive")
    assert "Traceback" in told.trace and "test_run_ending.py" in told.trace


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), SystemExit(201)])
def test_what_the_superlink_or_a_signal_ends_has_no_ending(tmp_path, error):
    with pytest.raises(type(error)), run_ending.recorded(tmp_path, reply_stream.lost):
        raise error
    assert run_ending.read(tmp_path) is None


def test_an_error_that_cannot_be_written_is_raised_all_the_same(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError) as caught, run_ending.recorded(folder, reply_stream.lost):
        folder.rmdir()
        raise ValueError("no data")
    assert "could not be written" in caught.value.__notes__[0]


def test_a_killed_process_lets_go_of_its_folder_without_a_word(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fedhet.runs import run_ending; "
        "from fedhet.runs.write_ahead_log import alone\n"
        "with alone(Path(sys.argv[1])), run_ending.recorded(Path(sys.argv[1]), lambda error: False): time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        end = time.monotonic() + 60
        while not occupied(tmp_path):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    with alone(tmp_path):
        assert run_ending.read(tmp_path) is None
