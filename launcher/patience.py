"""How long a plan waits for a store that may be silent."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from launcher.errors import StoreError

_PATIENCE_S = 8.0  # guess: sign-in and two requests
_T = TypeVar("_T")


def soon(look: Callable[[], _T]) -> _T:
    """The result of a call that may hang. Raises what it raises, or StoreError when it takes too long."""
    answer: Future[_T] = Future()

    def ask() -> None:
        try:
            answer.set_result(look())
        except Exception as error:  # whatever it is, it belongs to whoever waits
            answer.set_exception(error)

    # A daemon: a store that is silent must not keep the command from ending.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(timeout=_PATIENCE_S)
    except TimeoutError:
        raise StoreError(f"no answer within {_PATIENCE_S:g} s", place="store") from None
