"""Work on many items at a time, with the results in order and never more than so many of them in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def look_ahead(act: Callable[[_T], _R], items: Iterable[_T], *, threads: int, ahead: int,
               name: str) -> Iterator[tuple[_T, _R]]:
    """Each item with what `act` makes of it, in the order of the items. What `act` raises comes from here.

    Args:
        threads: That act at a time.
        ahead: Items that are under way, or done and not yet taken, at most.
        name: Of the threads.
    """
    following = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        under_way: deque[tuple[_T, Future[_R]]] = deque()
        try:
            under_way.extend((item, pool.submit(act, item)) for item in islice(following, ahead))
            while under_way:
                item, done = under_way.popleft()
                yield item, done.result()
                under_way.extend((item, pool.submit(act, item)) for item in islice(following, 1))
        finally:
            pool.shutdown(cancel_futures=True)
