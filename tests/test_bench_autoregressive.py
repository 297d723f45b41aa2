"""The transformer that generation is compared with: kept keys and values give what the whole row gives."""

import pytest

torch = pytest.importorskip("torch")

from tests.tiny_ldlm import VOCABULARY, tiny_config, tiny_model  # noqa: E402
from trainer.bench_autoregressive import Decoding, comparable, num_layers  # noqa: E402
from trainer.generate import Generator  # noqa: E402


@pytest.fixture
def generator() -> Generator:
    config = tiny_config()
    return Generator(config, tiny_model(config).eval(), None, VOCABULARY, end_of_text_id=3)


def test_each_token_is_the_likeliest_after_the_whole_row_before_it(generator: Generator) -> None:
    model = comparable(generator, 10_000, torch.float32)
    decoding = Decoding(model, batch=2)

    first, second = decoding.tokens(2, seed=5), decoding.tokens(2, seed=6)

    for drawn_BL, start in ((first, 5), (second, 6)):
        rows_BL = torch.cat([torch.full((2, 1), start), drawn_BL[:, :-1]], dim=1)
        with torch.no_grad():
            assert torch.equal(model(rows_BL).argmax(dim=-1), drawn_BL)
    assert first.shape == (2, 8) and not torch.equal(first, second)


def test_it_has_about_as_many_parameters_as_were_asked_for(generator: Generator) -> None:
    """Width 16: a block has 12 * 256 = 3,072 weights, the head 40 * 16 = 640."""
    sizes = generator.config.model
    assert num_layers(sizes, 640 + 5 * 3072, VOCABULARY) == 5
    assert num_layers(sizes, 100, VOCABULARY) == 1
    model = comparable(generator, 640 + 5 * 3072, torch.float32)
    read = sum(weight.numel() for name, weight in model.named_parameters() if "embedding" not in name)
    assert read == pytest.approx(640 + 5 * 3072, rel=0.1)  # biases, norms, positions
