"""The cross-entropy of the vocabulary head, against torch's own on whole logits."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from live_bytes import LiveBytes  # noqa: E402

from trainer.config import TrainConfig  # noqa: E402
from trainer.encoder_shape import encoder_shape  # noqa: E402
from trainer.memory import JobSizes, token_loss_bytes  # noqa: E402
from trainer.sizes import loss_chunk_rows  # noqa: E402
from trainer.token_loss import VocabularyHead, linear_cross_entropy, loss_and_gradients  # noqa: E402


@pytest.fixture(params=[False, True], ids=["as it is", "to be compiled"])
def compiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways; what would be compiled is run as it is written."""
    monkeypatch.setattr("trainer.token_loss.compiled", lambda function: function)
    return request.param


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


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 5, 100])
def test_value_and_all_gradients_are_exact_however_the_rows_are_split(
        rows_at_a_time: int, compiles: bool) -> None:
    features, weight, bias, targets = _case()
    loss = linear_cross_entropy(features, weight, bias, targets, 17 * rows_at_a_time, compiles)
    (3 * loss).backward()
    found = (loss.detach(), features.grad, weight.grad, bias.grad)
    for mine, theirs in zip(found, _reference(features, weight, bias, targets), strict=True):
        assert torch.allclose(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_bfloat16_weights_get_gradients_that_are_rounded_once(compiles: bool) -> None:
    """Rounded chunk by chunk, a sum over thousands of rows would lose whole digits."""
    features, weight, bias, targets = _case(torch.bfloat16, num_rows=4_000)
    loss = linear_cross_entropy(features, weight, bias, targets, 17 * 10, compiles)
    (3 * loss).backward()
    value, for_features, for_weight, for_bias = _reference(features, weight, bias, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(value.item(), rel=1e-2)
    for mine, theirs in ((features.grad, for_features), (weight.grad, for_weight), (bias.grad, for_bias)):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - theirs).norm() < 1e-2 * theirs.norm()


def test_no_counted_row_gives_zero_and_no_gradient() -> None:
    for num_rows in (5, 0):
        features, weight, bias, _ = _case(num_rows=num_rows)
        loss = linear_cross_entropy(features, weight, bias, torch.full((num_rows,), -100))
        loss.backward()
        assert loss.item() == 0.0
        assert not any(leaf.grad.any() for leaf in (features, weight, bias))


def test_large_logits_neither_overflow_nor_underflow(compiles: bool) -> None:
    features, weight, bias, targets = _case()
    with torch.no_grad():
        features *= 1e4
    loss = linear_cross_entropy(features, weight, bias, targets, compiles=compiles)
    assert loss.item() == pytest.approx(_reference(features, weight, bias, targets)[0].item(), rel=1e-5)


def test_what_is_not_a_number_shows_in_the_loss(compiles: bool) -> None:
    features, weight, bias, targets = _case()
    with torch.no_grad():
        features[1] = float("nan")
    assert linear_cross_entropy(features, weight, bias, targets, compiles=compiles).isnan()


@pytest.mark.parametrize(("precision", "micro_batch_size"), [("bf16", 16), ("bf16", 2), ("fp32", 16)])
def test_peak_of_memory_is_what_the_plan_counts_at_real_sizes(
        precision: str, micro_batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data; products are added in place, as on a GPU."""
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
        loss_and_gradients(*leaves, targets, loss_chunk_rows(vocabulary), needs_gradients=True)
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


@pytest.mark.gpu
def test_on_a_gpu_bfloat16_is_as_exact_and_takes_far_less_memory_than_whole_logits() -> None:
    num_rows, width, vocabulary = 2_048, 768, 248_320
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").div(5).bfloat16().requires_grad_()

    leaves = features, weight, bias = drawn(num_rows, width), drawn(vocabulary, width), drawn(vocabulary)
    targets = torch.randint(0, vocabulary, (num_rows,), generator=generator, device="cuda")
    targets[::5] = -100
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = linear_cross_entropy(*leaves, targets)
    (3 * loss).backward()
    peak = torch.cuda.max_memory_allocated() - before
    # Gradient of the weight in float32 and in bfloat16; logits and theirs for 2^26 elements; small change.
    assert peak < 6 * weight.numel() + 12 * 2**26 + 2**27
    assert peak < 0.6 * 4 * num_rows * vocabulary * 2  # logits and their gradient in float32
    whole = [leaf.detach().float().requires_grad_() for leaf in leaves]
    expected = F.cross_entropy(F.linear(*whole), targets)
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    for mine, theirs in zip(leaves, whole, strict=True):
        assert (mine.grad.float() - theirs.grad).norm() < 1e-2 * theirs.grad.norm()
