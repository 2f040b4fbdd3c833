"""Other accounts of the server's machine: what a second uid can reach of a federation."""

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from fedhet.federation.common import private_files, process_supervisor
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.process_supervisor import Supervisor
from fedhet.federation.server.operator import me
from fedhet.federation.server.superlink import SuperLink
from fedhet.flower import socket_files

found = importlib.util.spec_from_file_location("living", Path(__file__).with_name("living.py"))
living = importlib.util.module_from_spec(found)
found.loader.exec_module(living)

NOBODY = 65534


def as_another(work, account=NOBODY):
    """The errno with which an attempt under another account ends, or 0."""
    child = os.fork()
    if not child:
        code = 255
        try:
            os.setgroups([])
            os.setgid(account)
            os.setuid(account)
            work()
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def public():
    """A folder that every account can enter, unlike pytest's own."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as a second account")
    folder = Path(tempfile.mkdtemp(prefix="fedhet-"))
    folder.chmod(0o755)
    assert as_another(lambda: list(folder.iterdir())) == 0
    yield folder
    shutil.rmtree(folder)


def family(pid):
    """A process and all that it and its children started."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    members = {pid}
    while more := {child for child, parent in parents.items() if parent in members} - members:
        members |= more
    return members


def ports(pids):
    """The TCP ports at which these processes listen."""
    listening = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for row in (line.split() for line in Path(table).read_text().splitlines()[1:]):
                if row[3] == "0A":
                    listening[row[9]] = int(row[1].rpartition(":")[2], 16)
    held = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                held.update(re.findall(r"socket:\[(\d+)\]", os.readlink(entry)))
    return {listening[inode] for inode in held & set(listening)}


def connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


@pytest.mark.transport
def test_another_account_reaches_nothing_of_flowers(public):
    link = SuperLink(private_files.private_folder(public / "op") / "flower")
    link.prepare(time.time())
    programs = Supervisor(link.programs())
    try:
        programs.step()
        living.until(link.listens, 150, "the SuperLink")
        assert link.nodes() == [], "the operator's account has the Control API"
        ours = family(programs.pid("superlink")) | family(programs.pid("superexec"))
        assert ports(ours) == set()
        assert as_another(lambda: connect(link.socket)) == errno.EACCES
        for name in ("superlink.db", "superexec.secret", "home/config.toml", "logs/superlink.log"):
            assert (link.folder / name).exists()
            assert as_another(lambda name=name: (link.folder / name).read_bytes()) == errno.EACCES
        # Were the folder open to all, its owner's socket file would still not be.
        for folder in (link.folder.parent, link.folder):
            folder.chmod(0o755)
        assert as_another(lambda: connect(link.socket)) == errno.EACCES
        connect(link.socket)
    finally:
        programs.stop()


def test_another_process_of_the_account_does_not_read_what_a_process_with_a_passphrase_holds(public):
    go, going = os.pipe()
    done, doing = os.pipe()
    child = os.fork()
    if not child:  # as a program of that account is, until it closes its memory
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            process_supervisor._LIBC.prctl(process_supervisor._DUMPABLE, 1, 0, 0, 0)
            os.write(doing, b"1")
            os.read(go, 1)
            process_supervisor.close_memory()
            os.write(doing, b"2")
            os.read(go, 1)
        finally:
            os._exit(0)

    def read(name):
        return as_another(lambda: Path(f"/proc/{child}/{name}").open("rb").read(1))

    try:
        assert os.read(done, 1) == b"1"
        assert read("environ") == 0
        os.write(going, b"1")
        assert os.read(done, 1) == b"2"
        assert [read(name) for name in ("environ", "mem", "maps")] == [errno.EACCES] * 3
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for end in (go, going, done, doing):
            os.close(end)


def test_what_a_server_starts_gets_no_secret_of_its_environment(tmp_path, monkeypatch):
    given = {"FEDHET_PASSPHRASE": "1", "FEDHET_PASSPHRASE_FILE": "2", "CREDENTIALS_DIRECTORY": "3", "AWS_SECRET": "4",
             "SSH_AUTH_SOCK": "5", "WANDB_API_KEY": "6", "OMP_NUM_THREADS": "7", "https_proxy": "8"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FEDHET_PASS_ENV", "WANDB_API_KEY")
    gets = SuperLink(tmp_path / "op" / "flower").environment
    assert {name for name in given if name in gets} == {"WANDB_API_KEY", "OMP_NUM_THREADS", "https_proxy"}
    assert gets["FEDHET_HOME"] == str(tmp_path / "op") and "PATH" in gets


def test_an_account_without_a_name_is_called_by_its_number(public, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert as_another(lambda: os.chdir("/" if me() == "operator:54321" else "/nowhere"), 54321) == 0


def test_a_folder_that_can_hold_no_socket_file_is_named(tmp_path, monkeypatch):
    def too_long(path):
        raise OSError(f"{path} is too long for a socket file")

    monkeypatch.setattr(socket_files, "reachable", too_long)
    with pytest.raises(EnrollError, match=r"E317.*too long.*--home"):
        SuperLink(private_files.private_folder(tmp_path / "op") / "flower").prepare(time.time())


def test_a_socket_file_may_have_a_long_path(tmp_path):
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(socket_files.reachable(folder / "a.sock"))
        server.listen()
        connect(socket_files.reachable(folder / "a.sock"))
    assert socket_files.reachable(Path("/run/a.sock")) == "/run/a.sock"
