"""Work done ahead in threads, results in order.

Pillow, numpy and torch release the GIL while they work on pixels, so the threads do run side by side.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_WORKERS = 8


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, computed in ``workers`` threads.

    At most ``workers + ahead`` items are begun and not yet yielded. What ``function`` raises is raised here, at its
    turn. When the caller stops early, by an exception or by closing the generator, no further item is begun and the
    threads have ended on return.
    """
    remaining = iter(items)
    pending: deque[Future[Result]] = deque()
    # Each worker computes with one thread of torch's. That setting is the worker's own, but it also becomes the one
    # that threads begin with which have not used torch yet, even the caller if it has not. So it is put back each time.
    callers = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "vitrail-data", initializer=torch.set_num_threads, initargs=(1,))
    try:
        pending.extend(pool.submit(function, item) for item in islice(remaining, workers + ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
            torch.set_num_threads(callers)
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(callers)


def default_workers() -> int:
    """Return the number of processor cores this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)
