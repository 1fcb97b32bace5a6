"""Reading ahead: the next batch is read, checked and pinned while the update before it is computed."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

Batch = TypeVar("Batch", bound=tuple[Any, ...])  # A named tuple of what can be pinned: tensors, prompts.


class ReadAhead(Generic[Batch]):
    """Batches by their number, read one ahead of the one that was asked for, up to number `end`.

    Each is read by a thread of its own, which ends with it: nothing is to be closed. What goes wrong is raised where
    the batch is asked for. Which thread reads changes no bit.
    """

    def __init__(self, read: Callable[[int], Batch], *, end: int, pin: bool) -> None:
        """`pin` puts batches into page-locked memory, from which a GPU copies while others compute."""
        self._read, self._end, self._pin = read, end, pin
        self._next: _Reading | None = None

    def __call__(self, number: int) -> Batch:
        """Batch `number`."""
        reading = self._next if self._next and self._next.number == number else self._start(number)
        batch = reading.batch.result()
        self._next = self._start(number + 1) if number + 1 < self._end else None
        return batch

    def _start(self, number: int) -> "_Reading":
        reading = _Reading(number, Future())
        threading.Thread(target=self._fill, args=reading, name="ard-read-ahead").start()
        return reading

    def _fill(self, number: int, batch: "Future[Batch]") -> None:
        try:
            found = self._read(number)
            batch.set_result(type(found)(*(one.pin_memory() for one in found)) if self._pin else found)
        except BaseException as error:  # noqa: BLE001 raised again where the batch is asked for
            batch.set_exception(error)


class _Reading(NamedTuple):
    """A batch that a thread is reading."""

    number: int
    batch: "Future[Any]"
