"""A Flower Grid in virtual time: real messages, real client code, and a clock that jumps.

A pushed message starts on the worker pool at once (its inputs are fixed); its reply becomes visible when the clock
passes its arrival, which depends on the client's profile alone. So event logs and weights are the same bits for any
number of workers. At one instant replies come in the order their requests were sent.

A ServerApp that knows nothing of virtual time is served as a SuperLink would serve it (`polled`): time passes while it
polls, a message that outlives its time to live is answered with an error, and messages sent by several threads that
run as a `Crew` are under way at once.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedhet.flower.compat import ErrorCode, Run, claim_identity, empty_run, set_message_id
from fedhet.flower.execution import Outcome
from fedhet.population.profile import Timing
from fedhet.simulation.executor import Executor
from fedhet.simulation.simultaneous import Crew

log = logging.getLogger("fedhet.simulation.flower_app")

ASKED = 20
"""Times an app may ask for the nodes, and send nothing, before it is told that they are all there will be."""

NEVER = 1 << 62
"""Nanoseconds: the arrival of a reply that will not come."""


class Stalled(RuntimeError):
    """Nothing is on its way and no timer is set: the run would wait for ever."""


@dataclass(slots=True)
class _Flight:
    number: int
    message: Message
    trip: Timing
    late: bool = False
    """Whether the message's time to live is over before its reply is there."""
    outcome: Outcome | None = None


class VirtualGrid(Grid):
    """Grid and Clock over an executor, such as the worker pool.

    `nodes` lists the node ids; `travel(message, at_ns)` says how long a message takes; `silent(node)` whether a lost
    task of that node is never reported; `config(node)` is the node's configuration; `observe` sees every trip,
    and `heard` every message that is answered, with its reply.

    `polled` is for a ServerApp that takes this for a real grid: a pull that would bring nothing lets time pass to the
    first reply it asks for, and a message's `ttl` is kept in virtual seconds. There a message is named by its node and
    that node's turn, "7.0", "7.1", ...: its name is the same whatever other nodes are sent.
    """

    def __init__(
        self,
        pool: Executor,
        nodes: Sequence[int],
        travel: Callable[[Message, int], Timing],
        *,
        config: Callable[[int], dict[str, Any]],
        silent: Callable[[int], bool] = lambda node: False,
        observe: Callable[[Message, Timing], None] = lambda message, trip: None,
        heard: Callable[[Message, Message], None] | None = None,
        run_config: Mapping[str, Any] | None = None,
        run_id: int = 1,
        polled: bool = False,
    ) -> None:
        claim_identity(run_id)
        self._run = empty_run(run_id)
        self._pool, self._nodes, self._travel, self._config = pool, nodes, travel, config
        self._silent, self._observe, self._run_config = silent, observe, dict(run_config or {})
        self._polled, self._passes, self._heard, self.crew = polled, polled, heard, Crew(self)
        self._sender, self._owner, self._asked = threading.RLock(), threading.get_ident(), 0
        self.now_ns, self._pushed = 0, 0
        self.states: dict[int, RecordDict] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._flights: dict[str, _Flight] = {}
        self._last: dict[int, str] = {}
        self._turns: Counter[int] = Counter()
        self._busy: dict[int, int] = {}

    # Clock

    def now(self) -> float:
        return self.now_ns / 1e9

    def wait(self, until: float | None) -> None:
        """Jump to `until` or to the next arrival. Raises Stalled if there is neither."""
        at = self._heap[0][0] if self._heap else NEVER
        if until is not None:
            at = min(at, round(until * 1e9))
        if at >= NEVER:
            mute = sorted({f.message.metadata.dst_node_id for f in self._flights.values()})
            who = (
                f"{len(mute)} client(s) never answer ({mute[:8]}) and no timer is set"
                if mute
                else "nothing is in flight"
            )
            raise Stalled(f"at {self.now():g} virtual seconds {who}")
        self.now_ns = max(self.now_ns, at)

    def as_clock(self) -> VirtualGrid:
        """Itself, for a server that knows of virtual time: pulls let none pass any more."""
        self._passes = False
        return self

    # Grid

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All registered nodes: a message to one that is offline waits for it, as on a real server."""
        if self._polled and threading.get_ident() == self._owner:
            self._asked += 1
            if self._asked == ASKED:
                log.warning(
                    "the app has asked for the nodes %d times and sent nothing: if it waits for more than the %d there "
                    "are, it waits for ever", ASKED, len(self._nodes),
                )  # fmt: skip
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages on their way. A node does one at a time, in the order sent."""
        ids = []
        self._asked = 0
        for message in messages:
            number = self._pushed
            self._pushed += 1
            node = message.metadata.dst_node_id
            name = self._name(node, number)
            set_message_id(message, name)
            previous = self._flights.get(self._last.get(node, ""))
            starts = max(self.now_ns, self._busy.pop(node, 0) if previous is None else previous.trip.arrived_ns)
            trip = self._travel(message, starts)
            flight = _Flight(number, message, trip)
            heard = NEVER if trip.lost is not None and self._silent(node) else trip.arrived_ns
            if self._polled and (end := self.now_ns + round(message.metadata.ttl * 1e9)) < heard:
                heard, flight.late = end, True
            state = self.states.get(node) or RecordDict()
            if previous is not None:
                state = self._settle(previous).state
            if trip.lost is None:
                context = Context(self._run.run_id, node, self._config(node), state, self._run_config)
                self._pool.submit(number, trip.arrived_ns, message, context)
            else:
                reason = Error(ErrorCode.NODE_UNAVAILABLE, trip.lost)
                flight.outcome = Outcome(Message(reason, reply_to=message), state)
            self._flights[name], self._last[node] = flight, name
            if heard < NEVER:
                heapq.heappush(self._heap, (heard, number, name))
            self._observe(message, trip)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies that have arrived by now, each exactly once, in order of (arrival, request), one at a time: what is
        not asked for is not waited for, and stays."""
        wanted = message_ids if isinstance(message_ids, (KeysView, Set)) else set(message_ids)
        if self._passes:
            self._idle(wanted)
        yield from self.arrived(wanted)

    def arrived(self, wanted: Set[str]) -> Iterator[Message]:
        """The same without letting time pass."""
        kept = []
        try:
            while self._heap and self._heap[0][0] <= self.now_ns:
                entry = heapq.heappop(self._heap)
                if entry[2] in wanted:
                    yield self._deliver(entry[2])
                else:
                    kept.append(entry)
        finally:
            for entry in kept:
                heapq.heappush(self._heap, entry)

    def _deliver(self, name: str) -> Message:
        flight = self._flights[name]
        outcome = self._settle(flight)
        del self._flights[name]
        node = flight.message.metadata.dst_node_id
        if self._last.get(node) == name:
            del self._last[node]
        if outcome.state:
            self.states[node] = outcome.state
        else:
            self.states.pop(node, None)
        reply = outcome.reply
        if flight.late:
            self._busy[node] = flight.trip.arrived_ns  # nobody tells it to stop
            ttl = flight.message.metadata.ttl
            reason = f"no answer within the {ttl:g} virtual seconds that the message lives"
            reply = Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=flight.message)
        if self._heard is not None:
            self._heard(flight.message, reply)
        return reply

    def _name(self, node: int, number: int) -> str:
        if not self._polled:
            return f"m{number}"
        self._turns[node] += 1
        return f"{node}.{self._turns[node] - 1}"

    def _idle(self, wanted: Set[str]) -> None:
        """Who polls has nothing else to do: if nothing is there yet, let time pass to the first reply of those."""
        at = min((entry for entry in self._heap if entry[2] in wanted), default=None)
        if at is not None:
            self.now_ns = max(self.now_ns, at[0])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then let virtual time pass until all replies are in or `timeout` virtual seconds are over.

        Raises Stalled if there will never be all replies, and RuntimeError in a thread that is not of the `crew` while
        another waits: when all have sent what is to be under way at once cannot be known of such threads.
        """
        if self.crew.aboard:
            end = None if timeout is None else self.now() + timeout
            return self.crew.exchange(self.push_messages(messages), end)
        if not self._sender.acquire(blocking=False):
            raise RuntimeError(
                "two threads of the ServerApp wait for replies at once, and virtual time cannot know which others will "
                "follow: give all messages of a round to one send_and_receive"
            )
        try:
            return self._exchange(messages, timeout)
        finally:
            self._sender.release()

    def _exchange(self, messages: Iterable[Message], timeout: float | None) -> list[Message]:
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else self.now() + timeout
        replies: list[Message] = []
        while waiting and (end is None or self.now() < end):
            if end is None and not any(name in waiting for _, _, name in self._heap):
                raise Stalled(f"{len(waiting)} message(s) will never be answered and no timeout is set")
            self.wait(end)
            got = list(self.arrived(waiting))
            replies += got
            waiting.difference_update(m.metadata.reply_to_message_id for m in got)
        return replies

    def _settle(self, flight: _Flight) -> Outcome:
        if flight.outcome is None:
            flight.outcome = self._pool.result(flight.number)
        return flight.outcome
