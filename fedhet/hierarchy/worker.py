"""A process that computes: reads what to do from its standard input, works in shared memory, answers with a line.

    {"id": 7, "do": "sum", "out": 4096, "size": 1000, "rows": [8192, 12288], "c": [0.5, 2.0]}
    {"id": 7, "cpu": 0.0003}

Places are bytes from the start of the memory behind the file descriptor given as first argument; payloads never go
through the pipe. Any process does the work of a leaf, a middle or a top: its role is what it is asked to do. Started
with the path of the compiled loop it needs neither numpy nor torch for sums and is there in a fraction of a second;
what the other tasks need is loaded when the first of them comes (`fedhet.hierarchy.shard`). A task that cannot be done
is answered with its "error". The process ends by itself when nothing was asked of it for a while, so that a quiet
federation has no aggregator at all.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedhet import native
from fedhet.native import SharedSum


def with_torch(memory: mmap.mmap) -> SharedSum:
    """The same sum by torch."""
    import torch

    torch.set_num_threads(1)

    def run(out: int, size: int, rows: Sequence[int], c: Sequence[float]) -> None:
        total = torch.frombuffer(memory, dtype=torch.float32, count=size, offset=out)
        total.zero_()
        for at in range(0, size, 1 << 18):
            part = total[at : at + (1 << 18)]
            for row, factor in zip(rows, c, strict=True):
                x = torch.frombuffer(memory, dtype=torch.float32, count=len(part), offset=row + 4 * at)
                part.add_(x, alpha=factor)

    return run


def summing(path: str, memory: mmap.mmap) -> SharedSum:
    """The compiled loop, or torch's with the same bits where there is none or it is gone."""
    return native.shared_sum(path, memory) or with_torch(memory)


def lines(descriptor: int, idle: float) -> Iterator[bytes]:
    """Lines as they come, until the other end is closed or nothing came for `idle` seconds."""
    rest = b""
    while select.select([descriptor], [], [], idle)[0]:
        got = os.read(descriptor, 1 << 16)
        if not got:
            return
        *whole, rest = (rest + got).split(b"\n")
        yield from whole


def work(task: Mapping[str, Any], memory: mmap.mmap, add: SharedSum) -> None:
    """Do one task."""
    if task["do"] == "sum":
        add(task["out"], task["size"], task["rows"], task["c"])
        return
    from fedhet.hierarchy import shard

    shard.work(task, memory)


def main(descriptor: int, idle: float, path: str) -> None:
    """Work until there is nothing left to do."""
    memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    add = summing(path, memory)
    for line in lines(sys.stdin.fileno(), idle):
        task, began = json.loads(line), time.process_time()
        answer = {"id": task["id"]}
        try:
            work(task, memory, add)
        except Exception as error:  # whoever asked raises it
            answer["error"] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        answer["cpu"] = time.process_time() - began
        os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
