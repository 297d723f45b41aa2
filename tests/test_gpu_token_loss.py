"""The vocabulary loss by its kernels, on a GPU, against torch's own in float64.

Run with `pytest -m gpu -s tests/test_gpu_token_loss.py`; it prints the errors and times that it measures.
"""

import statistics

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from trainer.token_loss import linear_cross_entropy  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")
VOCABULARY = 248_320
# Rows of one program and of several, columns of one section and of several, rows that begin anywhere.
SIZES = [(1, 5), (3, 9_001), (70, 1_024), (129, 20_016), (64, 8_193)]


def _logits(num_rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(C, V) and targets (C, 1)."""
    generator = torch.Generator().manual_seed(num_rows)
    logits = 4 * torch.randn(num_rows, vocabulary, generator=generator)
    targets = torch.randint(0, vocabulary, (num_rows, 1), generator=generator)
    targets[0] = vocabulary - 1
    return logits.to(GPU, dtype), targets.to(GPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_rows", "vocabulary"), SIZES)
def test_kernels_find_sums_and_gradients_and_round_them_once(
        num_rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    from trainer.token_loss_kernels import differentiated, summed

    logits, targets = _logits(num_rows, vocabulary, dtype)
    exact = logits.double().requires_grad_()
    largest, total = summed(logits)
    assert torch.equal(largest.squeeze(1).double(), exact.amax(1))
    assert torch.allclose((total.log() + largest).squeeze(1).double(), exact.logsumexp(1), rtol=1e-6)
    share = torch.arange(num_rows, device=GPU).float()[:, None]  # the first does not count
    loss_C = F.cross_entropy(exact, targets.squeeze(1), reduction="none")
    wanted, = torch.autograd.grad((loss_C * share.squeeze(1)).sum(), exact)
    of_target = (-loss_C.detach()).expm1()[:, None] * share
    for_bias = differentiated(logits, largest, share / total, targets, of_target.float())
    half_a_step = torch.finfo(dtype).eps / 2 + 4e-6  # and float32's arithmetic
    assert ((logits.double() - wanted).abs() <= half_a_step * wanted.abs() + 1e-12).all()
    assert torch.allclose(for_bias.double(), wanted.sum(0), rtol=1e-5, atol=1e-5 * num_rows)


def test_what_is_no_number_shows_and_what_is_impossible_does_not_disturb() -> None:
    from trainer.token_loss_kernels import summed

    infinity, nan = float("inf"), float("nan")
    logits, targets = _logits(6, 20_001, torch.bfloat16)
    logits[0, 19_000], logits[1, 7], logits[2], logits[3] = nan, infinity, nan, -infinity
    logits[4, 8_192:16_384], targets[4] = -infinity, 5
    logits[5, targets[5]] = -infinity
    largest, total = summed(logits)
    found = (total.log() + largest - logits.gather(1, targets)).squeeze(1)
    wanted = F.cross_entropy(logits.double(), targets.squeeze(1), reduction="none")
    assert wanted.isnan().tolist() == [True] * 4 + [False] * 2
    assert torch.allclose(found.double(), wanted, rtol=1e-5, equal_nan=True)


def _drawn(num_rows: int, width: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Features, weight and bias in bfloat16, leaves; targets, of which a fifth do not count."""
    generator = torch.Generator(GPU).manual_seed(0)
    leaves = [torch.randn(shape, generator=generator, device=GPU).div(5).bfloat16().requires_grad_()
              for shape in ((num_rows, width), (VOCABULARY, width), (VOCABULARY,))]
    targets = torch.randint(0, VOCABULARY, (num_rows,), generator=generator, device=GPU)
    targets[::5] = -100
    return leaves, targets


def _found(leaves: list[torch.Tensor], targets: torch.Tensor) -> list[torch.Tensor]:
    """Loss and gradients."""
    loss = linear_cross_entropy(*leaves, targets)
    return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]


def _milliseconds(leaves: list[torch.Tensor], targets: torch.Tensor) -> float:
    """Median of ten."""
    taken = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        _found(leaves, targets)
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end))
    return statistics.median(taken)


def test_by_kernels_it_is_as_exact_as_by_torch_and_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, targets = _drawn(1_024, 512)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    loss = F.cross_entropy(F.linear(*exact), targets)
    wanted = torch.autograd.grad(3 * loss, exact)

    def errors(gradients: list[torch.Tensor]) -> list[float]:
        return [float((mine.double() - theirs).norm() / theirs.norm())
                for mine, theirs in zip(gradients, wanted, strict=True)]

    mine, again = _found(leaves, targets), _found(leaves, targets)
    assert all(map(torch.equal, mine, again))
    many_leaves, many_targets = _drawn(8_192, 512)
    mine_ms = _milliseconds(many_leaves, many_targets)
    monkeypatch.setattr("trainer.token_loss.has_triton", lambda device: False)
    plain, plain_ms = _found(leaves, targets), _milliseconds(many_leaves, many_targets)
    print(f"\n8,192 rows x 512, forward and backward: {mine_ms:.1f} ms by kernels, {plain_ms:.1f} ms by torch"
          f"\nerrors of gradients by features, weight, bias: {errors(mine[1:])} by kernels,"
          f" {errors(plain[1:])} by torch; loss {mine[0]:.7f}, {plain[0]:.7f}, {loss:.7f} in float64")
    assert mine[0].item() == pytest.approx(plain[0].item(), rel=1e-5)
    assert mine[0].item() == pytest.approx(loss.item(), rel=1e-3)
    for ours, theirs in zip(errors(mine[1:]), errors(plain[1:]), strict=True):
        assert ours < 1.02 * theirs and ours < 1e-2


def test_it_takes_far_less_memory_than_whole_logits() -> None:
    leaves, targets = _drawn(2_048, 768)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _found(leaves, targets)
    peak = torch.cuda.max_memory_allocated() - before
    # Gradient of the weight in float32, beside it the logits of a chunk or itself in bfloat16; small change.
    assert peak < 6 * leaves[1].numel() + 2**28
    assert peak < 0.6 * 4 * len(targets) * VOCABULARY * 2  # logits and their gradient in float32
