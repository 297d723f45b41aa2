"""What a save holds in host memory. What it leaves in the store: tests/test_resume.py."""

import io
import weakref

import pytest

torch = pytest.importorskip("torch")

from trainer.checkpoint import serialised  # noqa: E402


def test_of_all_states_one_at_a_time_is_in_memory_twice() -> None:
    states = {name: {"weights": torch.randn(5)} for name in ("first", "second")}
    expected = {name: state["weights"].clone() for name, state in states.items()}
    copies = {name: weakref.ref(state["weights"]) for name, state in states.items()}
    for name, data in serialised(states):
        assert copies[name]() is None and name not in states
        assert torch.equal(torch.load(io.BytesIO(data))["weights"], expected[name])
