"""One graph a token writes on a GPU what a CPU writes operation by operation."""

import pytest

torch = pytest.importorskip("torch")

from test_autoregressive import CONFIGS, LENGTH, lm_of  # noqa: E402

from trainer.autoregressive import Decoding  # noqa: E402

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("family", "num_ids"), [*((family, None) for family in CONFIGS), ("gpt2", 12_429)])
def test_a_graph_writes_what_operations_write(family: str, num_ids: int | None) -> None:
    said, rows = list[str](), []
    chances_BL = torch.rand((64, LENGTH), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for device in ("cpu", "cuda"):
        lm = lm_of(family, **({"vocab_size": num_ids} if num_ids else {}))
        lm.model.to(device)
        decoding = Decoding(lm, 64, LENGTH, said.append)
        for _ in range(2):  # what the first rows have left must not matter
            rows.append(decoding.rows(chances_BL.to(device)).cpu())
    assert said == []  # it was compiled, and captured
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[2], rows[3])
    assert (rows[0] == rows[2]).double().mean() > 0.98  # a number on the border of two tokens' shares
