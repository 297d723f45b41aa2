"""What our part of SkyPilot's server answers when Vast answers nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus


@contextmanager
def silence_told() -> Iterator[None]:
    """Answer 502 with the reason where Vast does not answer or refuses.

    The reason in Vast's SDK names an address that may bear the account's key, so it is not told.
    """
    import requests
    from fastapi import HTTPException

    try:
        yield
    except requests.RequestException as error:
        said = "does not answer" if error.response is None else f"answers {error.response.status_code}"
        raise HTTPException(HTTPStatus.BAD_GATEWAY, f"Vast {said}") from error
