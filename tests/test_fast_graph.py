"""What a capture takes care of and a CPU can show: torch compiles for as many sizes as are asked for."""

import pytest

torch = pytest.importorskip("torch")

from trainer.fast.graph import _many_sizes  # noqa: E402


def test_torch_compiles_for_more_sizes_than_it_would_by_itself() -> None:
    def doubled(x):
        return 2 * x

    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        _compiled_for(doubled, 12)
    torch._dynamo.reset()
    with _many_sizes():
        _compiled_for(doubled, 12)


def _compiled_for(function, num: int) -> None:
    made = torch.compile(function, backend="eager", fullgraph=True, dynamic=False)
    for size in range(1, num):
        assert torch.equal(made(torch.ones(size)), torch.full((size,), 2.0))
