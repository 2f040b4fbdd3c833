"""A run on a full disk reports it with a remedy, and leaves no empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax", "stop.versions=1"]


@pytest.fixture
def small(tmp_path: Path):
    """A file system of one megabyte."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place: Path, leave: int) -> None:
    handle = os.open(place / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(handle, bytes(4096)):
            pass
    except OSError:
        size = os.fstat(handle).st_size
    finally:
        os.close(handle)
    os.truncate(place / "filler", max(0, size - leave))


def test_a_full_disk_is_no_bad_input_and_leaves_nothing(fedhet, small: Path) -> None:
    fill(small, 0)
    code, out, err = fedhet("run", *QUICK, "--out", str(small / "run"))
    assert (code, out) == (1, "")
    assert "No space left on device" in err and "free space" in err
    assert [p.name for p in small.iterdir()] == ["filler"]


def test_a_disk_that_fills_up_during_a_run_is_named_with_the_way_on(fedhet, small: Path) -> None:
    fill(small, 24 << 10)
    code, _, err = fedhet("run", *QUICK, "model=mlp", "stop.versions=3", "--out", str(small / "run"))
    assert code == 1 and "No space left on device" in err
    assert f"free space, then: fedhet run --resume {small / 'run'}" in err
    (small / "filler").unlink()
    code, _, err = fedhet("run", "--resume", str(small / "run"))
    assert code == 0, err
