"""C functions: compiled once per machine, cached on disk, loaded with ctypes.

A function is compiled for the processor it runs on, kept in the user's cache between processes, and used only after the
module that asks for it has compared its answers with torch's on an example. Callers compute the same without it, so
that nothing that goes wrong here is an error: it is a reason, in words, why there is no function.

A library that is loaded has all rights of this process. So it lies in a folder that belongs to this user and that
nobody else may write to. Two files make one function, a library named by the hash of its content and a pointer to it:

    sum-5f0c...e1           the 64 digits of a SHA-256
    sum-5f0c...e1-<64>.so   loaded only if that is its hash, and built anew if it is not

Both are written under other names, synchronised with the disk and renamed, so that processes that start together and
machines that stop at any moment leave whole files or none.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Call = Callable[..., int | None]

SECONDS = 60.0
"""Longest time for a compiler, and for a trial of what it made."""

LARGEST = 1 << 24
"""Largest library that is read, in bytes; ours have some ten thousand."""

HUNG: set[str] = set()
"""Commands that took too long in this process, as messages name them: they are not run again."""

TRIAL = "import ctypes, sys; getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])"
"""Program of a process of its own that loads a new library first: a bad one can kill the process that loads it."""


class Unusable(Exception):
    """There is no compiled function; the message says why."""


@dataclass(frozen=True)
class Compiler:
    """A command, and its identity: path, size and modification time of every program in it."""

    command: tuple[str, ...]
    identity: str

    @classmethod
    def found(cls) -> Compiler:
        """The one in the environment variable CC, which may have options or a wrapper (`ccache gcc`), or `cc`. Raises
        Unusable if it is not there."""
        told = os.environ.get("CC", "").strip() or "cc"
        try:
            first, *rest = shlex.split(told)
        except ValueError as error:
            raise Unusable(f"CC={told} cannot be read: {error}") from None
        program = shutil.which(first)
        if program is None:
            raise Unusable("no C compiler" if told == "cc" else f"no C compiler: CC={told} is not found")
        parts = [Path(found) for word in (first, *rest) if (found := shutil.which(word))]
        about = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in parts]
        return cls((program, *rest), repr((told, about)))


@dataclass(frozen=True)
class Source:
    """One C function: `name` of its files in the cache, its own name, the C text, and the compiler's options."""

    name: str
    function: str
    text: str
    options: Sequence[str]

    def place(self) -> Path:
        """Path of the library, from the cache or built now. Raises Unusable if there is none."""
        compiler, folder = Compiler.found(), private(cache_folder())
        key = "\n".join([_machine(), compiler.identity, *self.options, self.text])
        pointer = folder / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        return _standing(pointer) or self._build(compiler, pointer)

    def load(self, types: Sequence[type], result: type | None = None) -> Call | str:
        """The function, taking arguments of these types; or why there is none."""
        try:
            call = getattr(ctypes.CDLL(str(self.place())), self.function)
        except Unusable as why:
            return str(why)
        except (OSError, AttributeError, RuntimeError) as error:  # RuntimeError: there is no home folder
            return f"the compiled loop is not usable: {type(error).__name__}: {error}"
        call.argtypes, call.restype = list(types), result
        found: Call = call
        return found

    def _build(self, compiler: Compiler, pointer: Path) -> Path:
        """Compile, load in a process of its own, and put into the cache; its path. What another process put there
        meanwhile is replaced by its equal. Raises Unusable."""
        with tempfile.TemporaryDirectory(dir=pointer.parent, prefix="build-", ignore_cleanup_errors=True) as room:
            source, made = Path(room) / "it.c", Path(room) / "it.so"
            source.write_text(self.text, encoding="utf-8")
            native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
            options = [native, "-shared", "-fPIC", *self.options]
            _run([*compiler.command, *options, str(source), "-o", str(made), "-lm"], room, "the compiler")
            if not made.is_file():
                raise Unusable(f"the compiled loop is not usable: {compiler.command[0]} wrote no library")
            _run([sys.executable, "-I", "-S", "-c", TRIAL, str(made), self.function], room, "a trial of the library")
            digest = hashlib.sha256(made.read_bytes()).hexdigest()
            library = pointer.with_name(f"{pointer.name}-{digest}.so")
            made.chmod(0o500)
            _settle(made, library)
            beside = Path(room) / "pointer"
            beside.write_text(digest, encoding="ascii")
            _settle(beside, pointer)
        found = _standing(pointer)
        if found is None:
            raise Unusable("the compiled loop is not usable: it was not what was written when it was read again")
        return found


def cache_folder() -> Path:
    """Where compiled functions are kept: the user's cache."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(told) if os.path.isabs(told) else Path.home() / ".cache") / "fedhet" / "compiled"


def private(folder: Path) -> Path:
    """The folder, made if it is absent. Raises Unusable unless it is this user's and nobody else can write to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise Unusable(f"the compiled loop is not usable: {folder} is no folder")
    if about.st_uid != os.geteuid():
        raise Unusable(f"the compiled loop is not usable: {folder} belongs to another user")
    for above in folder.resolve().parents:  # who can move a folder can put another in its place
        mode, owner = above.stat().st_mode, above.stat().st_uid
        if owner not in (0, os.geteuid()) or (mode & 0o002 and not mode & stat.S_ISVTX):
            raise Unusable(f"the compiled loop is not usable: another user can replace what lies in {above}")
    if about.st_mode & 0o077:
        folder.chmod(0o700)
        for old in folder.iterdir():  # whoever could write here may have done so
            if not old.is_dir():
                old.unlink()
    return folder


def _standing(pointer: Path) -> Path | None:
    """The library that a pointer names, or None unless both are there and the hash is right."""
    try:
        digest = _read(pointer, 64).decode("ascii")
        library = pointer.with_name(f"{pointer.name}-{digest}.so")
        if len(digest) != 64 or not digest.isalnum() or hashlib.sha256(_read(library, LARGEST)).hexdigest() != digest:
            return None
    except (OSError, ValueError):
        return None
    return library


def _read(path: Path, most: int) -> bytes:
    """A plain file of this user that nobody else may write to. Raises OSError for any other and for a longer one."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        fine = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022
        if not fine or about.st_size > most:
            raise OSError(f"{path} is not a file of this user's alone")
        return file.read(most)


def _settle(made: Path, place: Path) -> None:
    """Rename a file once its content is on the disk."""
    descriptor = os.open(made, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(made, place)


def _run(command: Sequence[str], room: str, what: str) -> None:
    """Run a command with `room` for temporary files; `what` names it in messages. Raises Unusable if it fails, dies or
    takes longer than `SECONDS`; whatever it started is killed then."""
    if what in HUNG:
        raise Unusable(f"the compiled loop is not usable: {what} took more than {SECONDS:g} seconds")
    with open(f"{room}/told", "w+b") as told:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, cwd=room, start_new_session=True,
            env={**os.environ, "TMPDIR": room, "LC_ALL": "C"},
        )  # fmt: skip
        try:
            code = process.wait(SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # of a wrapper also what it started
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            HUNG.add(what)
            raise Unusable(f"the compiled loop is not usable: {what} took more than {SECONDS:g} seconds") from None
        if code:
            told.seek(0)
            lines = told.read(1 << 16).decode(errors="replace").splitlines()
            said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
            raise Unusable(f"the compiled loop is not usable: {what} ended with {code}: {said.strip()[:200]}")


def _machine() -> str:
    """Operating system and kinds of processor, part of a cache key: unlike machines may share a home folder."""
    about = Path("/proc/cpuinfo")
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU implementer", "CPU part")
    lines = about.read_text(encoding="utf-8", errors="replace").splitlines() if about.is_file() else []
    kinds = sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join([platform.platform(), platform.processor(), platform.machine(), *kinds])
