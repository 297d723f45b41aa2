"""What most of the lab's tests need; a file that needs another store says so itself."""

from collections.abc import Iterator

import pytest

from tests.lab.runs import running_store, stocked_vast
from tests.lab.vast_client import HOST_ADDRESS, FakeVast


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A store that instances of the fake of Vast reach."""
    with running_store(HOST_ADDRESS) as url:
        yield url


@pytest.fixture
def vast() -> Iterator[FakeVast]:
    """The fake of Vast, stocked."""
    with stocked_vast() as fake:
        yield fake
