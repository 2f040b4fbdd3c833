"""Functions that run concurrently in virtual time, each in a thread that may wait for replies on a virtual grid.

One thread runs at a time and yields when it waits or ends, in an order that depends on the tasks and the virtual clock
alone. Virtual time passes when all of them wait: the messages that they sent before are in flight at the same time. The
wall clock, the scheduler of the system and races have no influence.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Protocol

from flwr.app import Message

LIVENESS_CHECK_SECONDS = 10.0
"""Seconds between checks of whether the running thread is still alive."""


class Timed(Protocol):
    """The methods of a grid that a crew uses."""

    def now(self) -> float: ...

    def wait(self, until: float | None) -> None: ...

    def arrived(self, wanted: Set[str]) -> Iterator[Message]: ...


class Abandoned(RuntimeError):
    """Raised in a waiting task when the run ends."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the run ended while task {number} waited for replies")


class _Member:
    """A task in its thread: it is running, waits to continue, or has ended."""

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
        """Let the thread run until it waits or ends. Raises RuntimeError if it died."""
        if not self.begun:
            self._thread.start()
        else:
            self._turn.release()
        while not self._back.acquire(timeout=LIVENESS_CHECK_SECONDS):
            if not self._thread.is_alive() and not self._back.acquire(blocking=False):
                raise RuntimeError(f"{self._thread.name} died")
        if self.ended:
            self._thread.join(LIVENESS_CHECK_SECONDS)

    def rest(self) -> None:
        """In its thread: yield, and wait to continue."""
        self._back.release()
        self._turn.acquire()  # without a timeout: when the run ends, every member continues once more
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
    """Runs tasks on one grid. A task must not raise: it stores its own exception, as the task of a `Future` does."""

    def __init__(self, grid: Timed) -> None:
        self._grid = grid
        self._waits: dict[str, _Member] = {}

    @property
    def aboard(self) -> bool:
        """Whether the calling thread belongs to a crew."""
        return getattr(_HERE, "member", None) is not None

    def exchange(self, names: Iterable[str], end: float | None) -> list[Message]:
        """In a task: wait for the replies to these messages, for all of them or until `end` (virtual seconds)."""
        member: _Member = _HERE.member
        if member.abandoned:
            raise Abandoned(member.number)
        member.waiting, member.end, member.replies = set(names), end, []
        if member.waiting:
            self._waits.update(dict.fromkeys(member.waiting, member))
            member.rest()
        return member.replies

    def run(self, tasks: Sequence[Callable[[], None]], at_once: int | None = None) -> None:
        """Run tasks to their ends, at one virtual time in their order; at most `at_once` of them concurrently. Raises
        what the grid's `wait` raises if all of them wait for replies that will not come, and RuntimeError if called
        from a task."""
        if self.aboard:
            raise RuntimeError("a thread that waits for replies in virtual time cannot have threads of its own")
        fresh = deque(_Member(number, task) for number, task in enumerate(tasks))
        ready: deque[_Member] = deque()
        resting: dict[int, _Member] = {}
        free = at_once or len(tasks)
        try:
            while True:
                while ready or (fresh and free):
                    if not ready:
                        free -= 1
                    member = ready.popleft() if ready else fresh.popleft()
                    resting[member.number] = member  # so that the cleanup below finds it after any exception
                    member.go_on()
                    if member.ended:
                        del resting[member.number]
                        free += 1
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
        """Let virtual time pass until a member can continue; these members, in the order of their last replies."""
        ends = [member.end for member in resting.values() if member.end is not None]
        self._grid.wait(min(ends, default=None))
        complete = []
        for reply in self._grid.arrived(self._waits.keys()):
            member = self._waits.pop(reply.metadata.reply_to_message_id)
            member.waiting.remove(reply.metadata.reply_to_message_id)
            member.replies.append(reply)
            if not member.waiting:
                complete.append(member)
        now = self._grid.now()
        for member in resting.values():
            if member.waiting and member.end is not None and member.end <= now:
                for name in member.waiting:
                    del self._waits[name]
                complete.append(member)
        return complete
