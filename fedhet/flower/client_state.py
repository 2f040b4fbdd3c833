"""The state of a run on a device's disk: its plug-ins' memories and its last answer, in one file, written atomically.

Personal layers, error feedback and control variates survive the process, the run's server and a power failure. A job
that is sent a second time, because the server died before it received the answer, is answered from the disk: it is
not trained twice, and the memories do not change twice.

    SHA-256 of all that follows, a line
    JSON line {"job", "head", "memories"} | payload of the answer | payloads of the memories
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedhet.engine.client_runner import Memories
from fedhet.federation.common import private_files
from fedhet.flower.messages import payload_record
from fedhet.numerics import wire_format
from fedhet.system.atomic_file import DamagedError

MIN_FREE_BYTES = 1 << 20
"""Bytes that must be free, in addition to the size of the stored file, before a job begins."""
MAX_RUNS = 4
"""Stored runs; the least recently written one is deleted first."""


class CannotWrite(OSError):
    """The device's disk cannot store an answer, so it can run no job. The text names no path: it is sent to the
    server."""


@dataclass(frozen=True, slots=True)
class ClientState:
    """The content of a run's file: the last answered job, its answer, and the memories after it."""

    job: str = ""
    answer: RecordDict | None = None
    memories: Memories = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientStateStore:
    """The folder with the files of a device's runs."""

    folder: Path

    def read(self, run: str) -> ClientState:
        """The stored state of a run; empty if the run is new. Raises DamagedError if the file's hash does not match:
        altered memories would falsify every later answer."""
        path = self._path(run)
        if not path.exists():
            return ClientState()
        digest, _, rest = private_files.read_private(path).partition(b"\n")
        if digest.decode(errors="replace") != wire_format.digest(rest):
            raise DamagedError(f"{path} is not what was written: delete it, and the client goes on with empty memories")
        data = memoryview(rest)
        end = bytes(data[: 1 << 20]).index(b"\n")
        about = json.loads(bytes(data[:end]))
        parts, at = [], end + 1
        for size in [about["answer"], *about["memories"].values()]:
            parts.append(data[at : at + size])
            at += size
        content: Mapping[str, Any] = {"fedhet": ConfigRecord(about["head"]), "payload": payload_record(bytes(parts[0]))}
        trees = (wire_format.open_tree(bytearray(part)) for part in parts[1:])
        memories = {name: dict(tree) for name, tree in zip(about["memories"], trees, strict=True)}
        return ClientState(about["job"], RecordDict(content), memories)  # type: ignore[arg-type]

    def check(self, run: str) -> None:
        """Before a job: raises CannotWrite if the disk is read-only or has too little space for the answer."""
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        disk = os.statvfs(existing)
        if disk.f_flag & os.ST_RDONLY:
            raise CannotWrite(errno.EROFS, os.strerror(errno.EROFS))
        path = self._path(run)
        needed = MIN_FREE_BYTES + (path.stat().st_size if path.exists() else 0)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed:  # some network file systems report 0 blocks
            raise CannotWrite(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, run: str, job: str, answer: RecordDict, memories: Memories) -> None:
        """Store an answer and the memories after it instead of the former ones; synced to the disk on return. Raises
        CannotWrite."""
        try:
            self._write(run, job, answer, memories)
        except OSError as error:
            raise CannotWrite(error.errno, error.strerror) from error

    def _write(self, run: str, job: str, answer: RecordDict, memories: Memories) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        payload = answer.array_records["payload"]["tree"].data
        packed = {name: wire_format.encode(memory) for name, memory in sorted(memories.items())}
        sizes = {name: len(data) for name, data in packed.items()}
        about = {"job": job, "head": dict(answer.config_records["fedhet"]), "answer": len(payload), "memories": sizes}
        data = b"".join([json.dumps(about).encode(), b"\n", payload, *packed.values()])
        private_files.write_file(self._path(run), wire_format.digest(data).encode() + b"\n" + data)
        for old in sorted(self.folder.glob("*.keep"), key=lambda path: path.stat().st_mtime)[:-MAX_RUNS]:
            old.unlink()

    def _path(self, run: str) -> Path:
        if not (run.isascii() and run.isalnum() and len(run) <= 64):
            raise ValueError(f"{run!r:.60} does not name a run")
        return self.folder / f"{run}.keep"
