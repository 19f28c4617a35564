"""Ctrl-C that ends a training between two steps instead of within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """A wish to stop, asked for once per step: ``if stop(): ...``."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        """Return whether somebody wants the training to stop."""
        return self.requested


@contextmanager
def graceful_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM within the block into a `StopRequest`, the second into KeyboardInterrupt.

    Signal handlers exist in the main thread only; in another thread the request stays as the caller sets it.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
