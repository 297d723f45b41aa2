"""The most likely row, block by block, against one product and one argmax."""

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from trainer.fast import head  # noqa: E402


def _problem(num: int, rows: int, width: int = 8, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (torch.randn(*shape, generator=generator)
                              for shape in ((num, width), (rows, width), (rows,)))
    return features.to(dtype), weight.to(dtype), bias


@pytest.mark.parametrize(("logits", "positions"), [(2**23, 512), (100, 7), (33, 4), (1, 1)])
@pytest.mark.parametrize("num_rows", [None, 90, 1])
def test_rows_are_those_of_one_product_however_it_is_cut(monkeypatch, logits, positions, num_rows) -> None:
    monkeypatch.setattr(head, "_LOGITS", logits)
    monkeypatch.setattr(head, "_POSITIONS", positions)
    features, weight, bias = _problem(20, 101)
    expected = (features @ weight.T + bias)[:, :num_rows].argmax(dim=1)
    assert torch.equal(head.argmax_rows(features, weight, bias, num_rows), expected)


@pytest.mark.parametrize("logits", [2**23, 64, 12])
def test_of_equal_rows_it_is_the_first(monkeypatch, logits) -> None:
    monkeypatch.setattr(head, "_LOGITS", logits)
    features, weight, bias = _problem(4, 30)
    best = (features @ weight.T + bias).argmax(dim=1)
    doubled = torch.cat([weight, weight, weight]), torch.cat([bias, bias, bias])
    assert torch.equal(head.argmax_rows(features, *doubled, None), best)


@pytest.mark.parametrize("logits", [2**23, 64])
def test_where_nothing_is_a_number_it_is_the_first_row_and_never_one_that_is_not_there(
        monkeypatch, logits) -> None:
    monkeypatch.setattr(head, "_LOGITS", logits)
    features, weight, bias = _problem(4, 30)
    wanted = (features @ weight.T + bias).argmax(dim=1)
    features[1] = float("nan")
    wanted[1] = 0
    assert torch.equal(head.argmax_rows(features, weight, bias, None), wanted)


@pytest.mark.parametrize("logits", [2**23, 64])
def test_one_row_that_is_no_number_hides_none_of_the_others(monkeypatch, logits) -> None:
    monkeypatch.setattr(head, "_LOGITS", logits)
    features, weight, bias = _problem(4, 60)
    bias[20] = float("-inf")
    wanted = (features @ weight.T + bias).argmax(dim=1)
    bias[20] = float("nan")
    assert torch.equal(head.argmax_rows(features, weight, bias, None), wanted)
    bias[40] = float("inf")
    assert head.argmax_rows(features, weight, bias, None).tolist() == [40] * 4


def test_weights_in_bfloat16_are_told_apart_as_their_exact_products_are() -> None:
    features, weight, bias = _problem(200, 20_000, dtype=torch.bfloat16)
    exact = features.double() @ weight.double().T + bias.double()
    rounded = exact.float().bfloat16().argmax(dim=1)
    assert torch.equal(head.argmax_rows(features, weight, bias, None), exact.argmax(dim=1))
    assert not torch.equal(rounded, exact.argmax(dim=1))


def test_never_more_logits_at_a_time_than_a_block_has() -> None:
    class Largest(TorchDispatchMode):
        num = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                is_new = tensor.data_ptr() != weight.data_ptr()
                self.num = max(self.num, tensor.numel() if is_new else 0)
            return made

    features, weight, bias = _problem(1_500, 30_000, width=4)
    with Largest() as largest:
        head.argmax_rows(features, weight, bias, None)
    assert 2**22 < largest.num <= 2**23
