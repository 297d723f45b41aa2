"""What a capture takes care of and a CPU can show: torch compiles for as many sizes as are asked for."""

import pytest

torch = pytest.importorskip("torch")

from trainer.fast import graph  # noqa: E402
from trainer.fast.graph import _many_sizes  # noqa: E402


def test_torch_compiles_for_more_sizes_than_it_would_by_itself() -> None:
    def doubled(x):
        return 2 * x

    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        _compiled_for(doubled, 12)
    torch._dynamo.reset()
    with _many_sizes():
        _compiled_for(doubled, 12)


@pytest.mark.parametrize(("has_triton", "ways"), [(False, [""]), (True, [" compiled", ""])])
def test_where_no_graph_can_be_had_it_is_said_and_the_work_is_done_all_the_same(
        has_triton, ways, monkeypatch) -> None:
    said, done = list[str](), list[int]()

    def refused(way: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(graph, "replay_of", refused)
    monkeypatch.setattr(graph, "has_triton", lambda device: has_triton)
    graph.quickest_replay(lambda: done.append(1), torch.device("cuda"), "a step", said.append)()
    assert said == [f"warning: no CUDA graph of a step{way}: operation not permitted" for way in ways]
    assert done == [1]


def _compiled_for(function, num: int) -> None:
    made = torch.compile(function, backend="eager", fullgraph=True, dynamic=False)
    for size in range(1, num):
        assert torch.equal(made(torch.ones(size)), torch.full((size,), 2.0))
