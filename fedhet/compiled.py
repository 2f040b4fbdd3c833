"""C functions compiled once per machine, and torch where there is no compiler.

A function is compiled for this very processor, kept in the user's cache between processes, and used only after its
module has checked its answers on an example. Nothing here decides results: whoever calls has another way to them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Call = Callable[..., int | None]


@dataclass(frozen=True)
class Source:
    """One C function: its file's `name`, its own name, its text, and the compiler's options for it."""

    name: str
    function: str
    text: str
    options: Sequence[str]

    def place(self) -> Path:
        """Where the compiled file lies."""
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedhet"
        key = "\n".join([_machine(), *self.options, self.text])
        return folder / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"

    def load(self, types: Sequence[type], result: type | None = None) -> Call | str:
        """The function, taking arguments of these types; or why there is none."""
        compiler = shutil.which(os.environ.get("CC") or "cc")
        if compiler is None:
            return "no C compiler"
        try:
            place = self.place()
            if not place.is_file():
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._compile(compiler, place)
            call = getattr(ctypes.CDLL(str(place)), self.function)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
            return f"the compiled loop is not usable: {type(error).__name__}"
        call.argtypes, call.restype = list(types), result
        found: Call = call
        return found

    def _compile(self, compiler: str, place: Path) -> None:
        """Beside its place, then moved: processes that start together do not read half a file."""
        native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
        with tempfile.TemporaryDirectory(dir=place.parent) as room:
            (Path(room) / "it.c").write_text(self.text, encoding="utf-8")
            options = [native, "-shared", "-fPIC", *self.options]
            command = [compiler, *options, f"{room}/it.c", "-o", f"{room}/it.so", "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            os.replace(f"{room}/it.so", place)


def _machine() -> str:
    """What the compiled file fits: a home folder may be shared by unlike processors."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    flags = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    return "\n".join([platform.platform(), platform.processor(), *flags])
