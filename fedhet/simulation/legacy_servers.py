"""Servers of Flower's former API in virtual time: `ServerApp(server_fn=...)`, which sends from one thread per client.

`flwr.server.server` makes a thread pool for every phase of a round, submits a call per client and waits for all; custom
subclasses of `Server` often copy that code. During a simulation these modules use a replaced `concurrent.futures`: its
pools begin when their futures are waited for, so all calls are known, and run them as a `Crew`. A pool without
`max_workers` runs all its calls at once, where Flower's would run four more than the machine has processors: so the
timeline is the same on every machine. Futures hash to their number, because Flower puts them into a set, whose order
would otherwise depend on addresses.

Private to Flower 1.41 and 1.42: that module, and the two functions in which its strategies wait for nodes.
"""

from __future__ import annotations

import concurrent
import concurrent.futures
import contextlib
import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from flwr.server.client_manager import SimpleClientManager
from flwr.server.server import Server
from flwr.serverapp.strategy import strategy_utils

from fedhet.simulation.simultaneous import Crew

REMEDY = "give the fleet more (--nodes), or lower the strategy's min_available_nodes and the like"


class TooFewNodes(ValueError):
    """The app waits for more nodes than the fleet has, and none will come."""


@contextlib.contextmanager
def crewed(crew: Crew, nodes: int) -> Iterator[None]:
    """A context manager: the threads of Flower's legacy servers and their subclasses run as this crew. Raises
    TooFewNodes where a strategy would wait for more than `nodes` nodes."""
    swaps = _swaps(crew)

    def no_more(seconds: float) -> NoReturn:
        raise TooFewNodes(f"the strategy waits for more than the {nodes} nodes there are: {REMEDY}")

    def wait_for(manager: SimpleClientManager, num_clients: int, timeout: int = 86400) -> bool:
        if num_clients > nodes:
            raise TooFewNodes(f"the strategy waits for {num_clients} nodes, there are {nodes}: {REMEDY}")
        return theirs(manager, num_clients, timeout)

    theirs = SimpleClientManager.wait_for
    with contextlib.ExitStack() as stack:
        stack.enter_context(_swapped(strategy_utils, "sleep", no_more))
        stack.enter_context(_swapped(SimpleClientManager, "wait_for", wait_for))
        for name in sorted({kind.__module__ for kind in _kinds(Server)}):
            module = sys.modules[name]
            for key, value in list(vars(module).items()):
                if id(value) in swaps:
                    stack.enter_context(_swapped(module, key, swaps[id(value)]))
        yield


@contextlib.contextmanager
def _swapped(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _kinds(kind: type) -> Iterator[type]:
    yield kind
    derived: type
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


def _swaps(crew: Crew) -> dict[int, Any]:
    """Replacements for what a module may have imported from `concurrent.futures`, by id of the original."""
    theirs = concurrent.futures
    ours = types.ModuleType(theirs.__name__)
    vars(ours).update({name: getattr(theirs, name) for name in theirs.__all__})
    swapped = {"ThreadPoolExecutor": functools.partial(_Pool, crew), "wait": _wait, "as_completed": _as_completed}
    vars(ours).update(swapped)
    package = types.ModuleType(concurrent.__name__)
    vars(package)["futures"] = ours
    return {id(concurrent): package, id(theirs): ours} | {id(getattr(theirs, k)): v for k, v in swapped.items()}


class _Future(concurrent.futures.Future[Any]):
    """The future of a call that begins when a result is waited for."""

    def __init__(self, number: int, pool: _Pool) -> None:
        super().__init__()
        self.number, self.pool, self.ended = number, pool, 0

    def __hash__(self) -> int:
        return self.number

    def result(self, timeout: float | None = None) -> Any:
        self.pool.begin()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.pool.begin()
        return super().exception(timeout)


class _Pool(concurrent.futures.Executor):
    """A `ThreadPoolExecutor` with the threads of a crew."""

    def __init__(
        self,
        crew: Crew,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        self._crew, self._most = crew, max_workers
        self._prepare = functools.partial(initializer, *initargs) if initializer is not None else None
        self._numbers, self._ends = itertools.count(), itertools.count()
        self._calls: list[Callable[[], None]] = []
        self._futures: list[_Future] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> _Future:
        future = _Future(next(self._numbers), self)
        self._futures.append(future)
        self._calls.append(functools.partial(self._call, future, functools.partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for future in self._futures if cancel_futures else []:
            future.cancel()
        self.begin()

    def begin(self) -> None:
        """Run all calls that were submitted and have not begun; returns when they have ended."""
        calls, self._calls = self._calls, []
        if calls:
            self._crew.run(calls, self._most)

    def _call(self, future: _Future, call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._prepare is not None:
                self._prepare()
            result = call()
        except BaseException as error:  # raised where the result is read, as with any pool
            future.ended = next(self._ends)
            future.set_exception(error)
        else:
            future.ended = next(self._ends)
            future.set_result(result)


def _wait(fs: Iterable[_Future], timeout: float | None = None, return_when: str = "ALL_COMPLETED") -> Any:
    futures = _begun(fs)
    return concurrent.futures.wait(futures, timeout, return_when)


def _as_completed(fs: Iterable[_Future], timeout: float | None = None) -> Iterator[_Future]:
    yield from sorted(_begun(fs), key=lambda future: future.ended)


def _begun(fs: Iterable[_Future]) -> list[_Future]:
    futures = list(fs)
    for future in futures:
        future.pool.begin()
    return futures
