"""The cross-entropy of the vocabulary head, against torch's own on whole logits."""

import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from live_bytes import LiveBytes  # noqa: E402

import trainer  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.encoder_shape import encoder_shape  # noqa: E402
from trainer.memory import JobSizes, token_loss_bytes  # noqa: E402
from trainer.token_loss import VocabularyHead, linear_cross_entropy, loss_and_gradients  # noqa: E402


def _summed(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first kernel is to find, in float64."""
    exact = logits.double()
    largest = exact.amax(1, keepdim=True)
    return largest.float(), (exact - largest).exp().sum(1, keepdim=True).float()


def _differentiated(logits: torch.Tensor, largest: torch.Tensor, factors: torch.Tensor,
                    targets: torch.Tensor, of_targets: torch.Tensor) -> torch.Tensor:
    """What the second one is to find and to leave, in float64."""
    exact = (logits.double() - largest).exp() * factors
    exact.scatter_(1, targets, of_targets.double())
    logits.copy_(exact)
    return exact.sum(0).float()


@pytest.fixture(params=[False, True], ids=["by torch", "around kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways; kernels by what they are to compute (`tests/test_gpu_token_loss.py` has the true ones)."""
    if request.param:
        _pretend_kernels(monkeypatch, _summed, _differentiated)


def _pretend_kernels(monkeypatch: pytest.MonkeyPatch, summed: object, differentiated: object) -> None:
    kernels = SimpleNamespace(summed=summed, differentiated=differentiated)
    monkeypatch.setitem(sys.modules, "trainer.token_loss_kernels", kernels)
    monkeypatch.setattr(trainer, "token_loss_kernels", kernels, raising=False)
    monkeypatch.setattr("trainer.token_loss.has_triton", lambda device: True)


def _case(dtype: torch.dtype = torch.float32, num_rows: int = 13) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    features = (2 * torch.randn(num_rows, 6, generator=generator)).to(dtype).requires_grad_()
    weight = torch.randn(17, 6, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(17, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 17, (num_rows,), generator=generator)
    targets[::4] = -100
    return features, weight, bias, targets


def _reference(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
               targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Value and gradients by torch, in float64, at the same (rounded) inputs."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (features, weight, bias)]
    loss = F.cross_entropy(F.linear(*leaves), targets)
    (3 * loss).backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rows_at_a_time", [1, 3, 5, 100])
def test_value_and_all_gradients_are_exact_however_the_rows_are_split(
        rows_at_a_time: int) -> None:
    features, weight, bias, targets = _case()
    loss = linear_cross_entropy(features, weight, bias, targets, rows_at_a_time)
    (3 * loss).backward()
    found = (loss.detach(), features.grad, weight.grad, bias.grad)
    for mine, theirs in zip(found, _reference(features, weight, bias, targets), strict=True):
        assert torch.allclose(mine.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("way")
def test_bfloat16_weights_get_gradients_that_are_rounded_once() -> None:
    """Rounded chunk by chunk, a sum over thousands of rows would lose whole digits."""
    features, weight, bias, targets = _case(torch.bfloat16, num_rows=4_000)
    loss = linear_cross_entropy(features, weight, bias, targets, 10)
    (3 * loss).backward()
    value, for_features, for_weight, for_bias = _reference(features, weight, bias, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value.item(), rel=1e-2)
    for mine, theirs in ((features.grad, for_features), (weight.grad, for_weight), (bias.grad, for_bias)):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.usefixtures("way")
def test_logits_in_bfloat16_are_rounded_no_further() -> None:
    """Of 20 e-folds below the largest the rounding would be a sixteenth of one."""
    weight = torch.linspace(-20, 9.9, 300)[:, None].bfloat16()
    features, targets = torch.ones(300, 1, dtype=torch.bfloat16), torch.arange(300)
    loss = linear_cross_entropy(features, weight, torch.zeros_like(weight[:, 0]), targets)
    wanted = F.cross_entropy(weight.T.double().expand(300, 300), targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_no_counted_row_gives_zero_and_no_gradient() -> None:
    for num_rows in (5, 0):
        features, weight, bias, _ = _case(num_rows=num_rows)
        loss = linear_cross_entropy(features, weight, bias, torch.full((num_rows,), -100))
        loss.backward()
        assert loss.item() == 0.0
        assert not any(leaf.grad.any() for leaf in (features, weight, bias))


@pytest.mark.usefixtures("way")
def test_large_logits_neither_overflow_nor_underflow() -> None:
    features, weight, bias, targets = _case()
    with torch.no_grad():
        features *= 1e4
    loss = linear_cross_entropy(features, weight, bias, targets)
    assert loss.item() == pytest.approx(_reference(features, weight, bias, targets)[0].item(), rel=1e-5)


@pytest.mark.usefixtures("way")
def test_what_is_not_a_number_shows_in_the_loss() -> None:
    features, weight, bias, targets = _case()
    with torch.no_grad():
        features[1] = float("nan")
    assert linear_cross_entropy(features, weight, bias, targets).isnan()


@pytest.mark.parametrize(("precision", "micro_batch_size", "has_kernels"), [
    ("bf16", 16, True), ("bf16", 2, True), ("fp32", 16, True), ("bf16", 16, False)])
def test_peak_of_memory_is_what_the_plan_counts_at_real_sizes(
        precision: str, micro_batch_size: int, has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data; products are added in place, as on a GPU."""
    if has_kernels:
        _pretend_kernels(monkeypatch, lambda logits: (logits[:, :1].float(), logits[:, :1].float()),
                         lambda logits, *_: logits.new_empty(logits.shape[1], dtype=torch.float32))
    config = TrainConfig.model_validate({
        "profile": "qwen3.6-35b-a3b", "steps": 1, "precision": precision, "data": {"source": "none"},
        "micro_batch_size": micro_batch_size, "token_loss_fraction": 0.125,
        "checkpoint": {"every_steps": 1}})
    width, vocabulary = config.model.token_decoder_width, 248_320
    num_rows, dtype = micro_batch_size * config.token_loss_positions, getattr(torch, {
        "bf16": "bfloat16", "fp32": "float32"}[precision])
    monkeypatch.setattr("trainer.token_loss._add_product", lambda total, left, right: total.add_(0))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    leaves = drawn(num_rows, width), drawn(vocabulary, width), drawn(vocabulary)
    targets = torch.empty(num_rows, dtype=torch.int64, device="meta")
    with LiveBytes(*leaves, targets) as live:
        loss_and_gradients(*leaves, targets, needs_gradients=True)
    features = leaves[0].nbytes  # their gradient is counted with the activations
    planned = token_loss_bytes(JobSizes(config, encoder_shape(config.token_encoder.name), 1))
    assert live.peak - features == pytest.approx(planned, rel=0.02)
    assert micro_batch_size == 2 or live.peak < 4 * num_rows * vocabulary


def test_head_gives_logits_or_their_loss_and_starts_as_a_linear_map() -> None:
    torch.manual_seed(0)
    head = VocabularyHead(6, 17)
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 17)
    assert torch.equal(head.weight, linear.weight) and torch.equal(head.bias, linear.bias)
    features, targets = torch.randn(2, 5, 6), torch.randint(0, 17, (2, 5))
    assert torch.equal(head(features), linear(features))
    expected = F.cross_entropy(linear(features).flatten(0, 1), targets.flatten())
    assert head(features, targets).item() == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        assert head(features, targets).item() == pytest.approx(expected.item(), rel=1e-5)
