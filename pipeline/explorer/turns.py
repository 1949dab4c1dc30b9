"""One computation at a time, in the order of asking: the language model takes all cores as it is."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from devil_pipe.store.errors import InputError

T = TypeVar("T")


class BusyError(InputError):
    """Too many are waiting."""


class Turns:
    """A thread that does what it is given, one after another; what is cancelled while it waits is never begun."""

    def __init__(self, most_waiting: int = 64) -> None:
        self._waiting: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._work, name="explorer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Put `work` at the end of the queue. Raises BusyError where the queue is full."""
        future: Future[T] = Future()
        try:
            self._waiting.put_nowait((future, work))
        except queue.Full:
            raise BusyError("too many questions are waiting; ask again in a moment") from None
        return future

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    def stop(self, seconds: float) -> bool:
        """Drop what waits and let what runs end; whether it did within `seconds`."""
        while True:
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[0].cancel()
        self._waiting.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()
