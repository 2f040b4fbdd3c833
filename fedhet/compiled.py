"""C functions compiled once per machine, and torch where there is no compiler.

A function is compiled for this very processor, kept in the user's cache between processes, and used only after its
module has checked its answers on an example. Nothing here decides results: whoever calls has another way to them.

What is loaded is code, so it lies in a folder of this user's own that nobody else can write, and its name holds the
SHA-256 of its bytes: a file that was cut or altered is not loaded, it is compiled again.
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
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedhet.durable import sync_file, sync_folder

Call = Callable[..., int | None]

COMPILE_SECONDS = 60.0
"""Seconds that the compiler may take."""


class Unusable(Exception):
    """Why there is no compiled function, in words."""


@dataclass(frozen=True)
class Source:
    """One C function: its file's `name`, its own name, its text, and the compiler's options for it."""

    name: str
    function: str
    text: str
    options: Sequence[str]

    def load(self, types: Sequence[type], result: type | None = None) -> Call | str:
        """The function, taking arguments of these types; or why there is none."""
        path = self.build()
        if isinstance(path, str):
            return path
        try:
            call = getattr(ctypes.CDLL(str(path)), self.function)
        except (OSError, AttributeError) as error:  # whole, but no library, or not with this function
            with contextlib.suppress(OSError):
                path.unlink()
            return f"the compiled loop cannot be loaded: {type(error).__name__}"
        call.argtypes, call.restype = list(types), result
        found: Call = call
        return found

    def build(self) -> Path | str:
        """Where the compiled file lies, its bytes checked, compiled now if need be; or why there is none."""
        try:
            compiler = _compiler()
            folder = private_folder()
            key = "\n".join([_machine(), *compiler, *self.options, self.text])
            stem = f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
            for path in sorted(folder.glob(f"{stem}-*.so")):
                if _is_whole(path):
                    return path
                path.unlink(missing_ok=True)
            return self._compile(compiler, folder, stem)
        except Unusable as error:
            return str(error)
        except (OSError, subprocess.SubprocessError) as error:
            return f"the compiled loop is not usable: {type(error).__name__}"

    def _compile(self, compiler: Sequence[str], folder: Path, stem: str) -> Path:
        """Beside its place, then moved: processes that start together do not read half a file."""
        native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
        with tempfile.TemporaryDirectory(dir=folder) as room:
            source, made = Path(room) / "it.c", Path(room) / "it.so"
            source.write_text(self.text, encoding="utf-8")
            _run([*compiler, native, "-shared", "-fPIC", *self.options, str(source), "-o", str(made), "-lm"])
            made.chmod(0o600)
            sync_file(made)
            path = folder / f"{stem}-{_digest(made)}.so"
            made.replace(path)
        sync_folder(folder)
        return path


def private_folder() -> Path:
    """Where compiled files lie: a folder that this user owns and nobody else can write.

    Below XDG_CACHE_HOME or ~/.cache; for a user without a home folder, among the temporary files. Raises Unusable if
    what lies there is somebody else's, and OSError if it cannot be made.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        parts = [cache / "fedhet", cache / "fedhet" / "native"]
    except RuntimeError:  # neither HOME nor an entry for this user
        parts = [Path(tempfile.gettempdir()) / f"fedhet-{os.getuid()}"]
    parts[0].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in parts:
        part.mkdir(mode=0o700, exist_ok=True)
        about = part.lstat()
        # the one above may have been made before, with this user's umask: his own group may write there
        others = 0o022 if part == parts[-1] else 0o002
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & others:
            raise Unusable(f"{part} is not a folder of this user's that nobody else can write")
    return parts[-1]


def _compiler() -> list[str]:
    """The words of CC, such as `ccache gcc`, or cc. Raises Unusable if there is no such program."""
    asked = os.environ.get("CC") or "cc"
    try:
        words = shlex.split(asked)
    except ValueError as error:
        raise Unusable(f"CC={asked!r} cannot be read: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise Unusable("no C compiler")
    return words


def _run(command: Sequence[str]) -> None:
    """Run the compiler and whatever it starts to its end, or to that of its time. Raises SubprocessError.

    It gets no pipe: one that a grandchild holds open would be waited for.
    """
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True) as process:
        try:
            code = process.wait(COMPILE_SECONDS)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if code:
        raise subprocess.CalledProcessError(code, command)


def _is_whole(path: Path) -> bool:
    """Whether a file is this user's, nobody else can write it, and it has the SHA-256 that its name says."""
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        return False
    return path.stem.rpartition("-")[2] == _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _machine() -> str:
    """What the compiled file fits: a home folder may be shared by unlike processors."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    flags = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return "\n".join([platform.platform(), platform.processor(), *flags])
