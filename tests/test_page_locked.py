import pytest

torch = pytest.importorskip("torch")

from trainer.page_locked import page_locked  # noqa: E402


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_that_is_given_back_can_be_locked_again() -> None:
    """Each takes the pages of the one before; with those still locked, CUDA refused every other library's."""
    device = torch.device("cuda", 0)
    for value in range(4):
        held = page_locked(2**24 + 1, device)
        assert held.is_pinned()
        held.copy_(torch.full(held.shape, value, dtype=torch.uint8, device=device), non_blocking=True)
        torch.cuda.synchronize(device)
        assert (held == value).all()
        del held
