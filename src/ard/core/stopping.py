"""Stopping well: the first signal ends the work at its next pause, where it is kept, and the second one at once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DOUBLE = 1.0  # Seconds. Within them a second signal is the same one: schedulers send it to a process and to its parent.


class Stopped(KeyboardInterrupt):
    """A signal has ended the work, as Ctrl-C does; the message says by which one and what is kept."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{kept}")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that shells give: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


class Stop:
    """Whether a signal has asked for an end."""

    def __init__(self) -> None:
        self.number = 0
        self.since = 0.0

    @property
    def asked(self) -> bool:
        """Whether one has."""
        return self.number != 0

    def pause(self, kept: str = "") -> None:
        """Raise Stopped if a signal has asked for it; `kept` says what the work has left."""
        if self.asked:
            raise Stopped(self.number, kept and f": {kept}")


@contextmanager
def stopping(told: Callable[[], None] = lambda: None) -> Iterator[Stop]:
    """Signals only ask for an end while the block runs, which looks at its pauses; `told` is called at each of them."""
    stop = Stop()

    def ask(number: int, _: Any) -> None:
        if not stop.asked:
            stop.number, stop.since = number, time.monotonic()
        elif time.monotonic() - stop.since > DOUBLE:
            told()
            raise Stopped(number)
        told()

    with _handled(ask):
        yield stop


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """A signal ends the block by Stopped, wherever it is."""

    def end(number: int, _: Any) -> None:
        raise Stopped(number)

    with _handled(end):
        yield


@contextmanager
def undisturbed_start() -> Iterator[None]:
    """Processes that are started in the block are reached by no signal to stop: who started them tells them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """`handler` for the signals that are not ignored; the ones before are put back. Only a main thread has any."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [number for number, known in before.items() if known not in {signal.SIG_IGN, None}]
    for number in mine:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
