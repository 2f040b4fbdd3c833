"""Functions that run as if at once on a virtual grid, each in a thread that may wait there for replies.

One thread runs at a time and hands over when it waits or ends, in an order that nothing but the tasks and the virtual
clock decides. Time passes when all of them wait: what they sent before that is under way at once, and no clock on the
wall, no scheduler and no race has a part in it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Protocol

from flwr.app import Message

LOOK = 10.0
"""Seconds between looks at whether the thread that has the turn is still alive."""


class Timed(Protocol):
    """What a crew needs of its grid."""

    def now(self) -> float: ...

    def wait(self, until: float | None) -> None: ...

    def arrived(self, wanted: Set[str]) -> Iterator[Message]: ...


class Abandoned(RuntimeError):
    """What a waiting task sees when the run ends under it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the run ended while task {number} waited for replies")


class _Member:
    """A task in its thread: it has the turn, waits for its next one, or has ended."""

    def __init__(self, number: int, work: Callable[[], None]) -> None:
        self.number, self.ended, self.abandoned = number, False, False
        self.waiting: set[str] = set()
        self.end: float | None = None
        self.replies: list[Message] = []
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._work = work
        self._thread = threading.Thread(target=self._live, name=f"fedhet-crew-{number}", daemon=True)

    @property
    def begun(self) -> bool:
        """Whether its thread was started."""
        return self._thread.ident is not None

    def go_on(self) -> None:
        """Give it the turn until it waits or ends. Raises RuntimeError if its thread is gone without a word."""
        if not self.begun:
            self._thread.start()
        else:
            self._turn.release()
        while not self._back.acquire(timeout=LOOK):
            if not self._thread.is_alive() and not self._back.acquire(blocking=False):
                raise RuntimeError(f"{self._thread.name} died")
        if self.ended:
            self._thread.join(LOOK)  # its last step

    def rest(self) -> None:
        """In its thread: give the turn back and wait for the next."""
        self._back.release()
        self._turn.acquire()  # as long as the run lasts: whoever ends it gives every member a last turn
        if self.abandoned:
            raise Abandoned(self.number)

    def _live(self) -> None:
        _HERE.member = self
        try:
            self._work()
        finally:
            self.ended = True
            self._back.release()


_HERE = threading.local()


class Crew:
    """Runs tasks on one grid. A task must not raise: it keeps its own failure, as a `Future`'s does."""

    def __init__(self, grid: Timed) -> None:
        self._grid = grid
        self._waits: dict[str, _Member] = {}

    @property
    def aboard(self) -> bool:
        """Whether the calling thread is one of a crew's."""
        return getattr(_HERE, "member", None) is not None

    def exchange(self, names: Iterable[str], end: float | None) -> list[Message]:
        """In a task: the replies to these messages, all of them or those there are by `end` (virtual seconds)."""
        member: _Member = _HERE.member
        if member.abandoned:
            raise Abandoned(member.number)
        member.waiting, member.end, member.replies = set(names), end, []
        if member.waiting:
            self._waits.update(dict.fromkeys(member.waiting, member))
            member.rest()
        return member.replies

    def run(self, tasks: Sequence[Callable[[], None]], at_once: int | None = None) -> None:
        """Run tasks to their ends, in their order as far as the clock leaves a choice; no more than `at_once` begin
        before others end. Raises what the grid's `wait` raises if all of them wait for what will not come, and
        RuntimeError in a task."""
        if self.aboard:
            raise RuntimeError("a thread that waits for replies in virtual time cannot have threads of its own")
        fresh = deque(_Member(number, task) for number, task in enumerate(tasks))
        ready: deque[_Member] = deque()
        resting: dict[int, _Member] = {}
        room = at_once or len(tasks)
        try:
            while True:
                while ready or (fresh and room):
                    if not ready:
                        room -= 1
                    member = ready.popleft() if ready else fresh.popleft()
                    resting[member.number] = member  # whatever happens now, it is not forgotten
                    member.go_on()
                    if member.ended:
                        del resting[member.number]
                        room += 1
                if not resting:
                    return
                ready.extend(self._next(resting))
        finally:
            self._waits.clear()
            for member in [member for member in resting.values() if member.begun]:
                member.abandoned = True
                while not member.ended:
                    member.go_on()

    def _next(self, resting: dict[int, _Member]) -> list[_Member]:
        """Let time pass until somebody can go on; those who can, in the order of what they waited for."""
        ends = [member.end for member in resting.values() if member.end is not None]
        self._grid.wait(min(ends, default=None))
        whole = []
        for reply in self._grid.arrived(self._waits.keys()):
            member = self._waits.pop(reply.metadata.reply_to_message_id)
            member.waiting.remove(reply.metadata.reply_to_message_id)
            member.replies.append(reply)
            if not member.waiting:
                whole.append(member)
        now = self._grid.now()
        for member in resting.values():
            if member.waiting and member.end is not None and member.end <= now:
                for name in member.waiting:
                    del self._waits[name]
                whole.append(member)
        return whole
