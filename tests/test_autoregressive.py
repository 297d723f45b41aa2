"""A trained autoregressive model beside ours: what it draws, what its graph may do, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from random_encoders import NUM_POSITIONS, WORDS, save_model, tokenizer  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from trainer.autoregressive import Decoding, chances_of, load_autoregressive, written  # noqa: E402
from trainer.causal_lm import CausalLM  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402

CPU = torch.device("cpu")
LENGTH = 7
_SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=len(WORDS), n_positions=12, n_embd=16, n_layer=2, n_head=2),
    "llama": transformers.LlamaConfig(**_SIZES), "mistral": transformers.MistralConfig(**_SIZES),
    "qwen3": transformers.Qwen3Config(**_SIZES, head_dim=8)}


def lm_of(family: str, **changes: Any) -> CausalLM:
    """Random weights, large enough that tokens differ in how likely they are."""
    torch.manual_seed(0)
    usual = CONFIGS[family]
    config = type(usual).from_dict(usual.to_dict() | {"bos_token_id": None} | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.4)
    return CausalLM(family, None, model, tokenizer(cls=False), 12)


def shares(lm: CausalLM, row: list[int], drawn: np.ndarray) -> np.ndarray:
    """What the whole row, read at once, says of what comes next: numpy from the logits on."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([row])).logits[0, -1].double().numpy()
    weights = np.where(drawn, np.exp(logits - logits.max()), 0.0)
    return weights / weights.sum()


@pytest.mark.parametrize("family", CONFIGS)
def test_kept_keys_and_values_give_what_whole_rows_give_again_and_again(family: str) -> None:
    lm = lm_of(family)
    decoding, drawn = Decoding(lm, 3, LENGTH, pytest.fail), np.ones(len(WORDS), bool)
    draw = np.random.default_rng(0)
    for _ in range(2):  # what the first rows have left in the cache must not matter
        chances_BL = draw.random((3, LENGTH))
        rows_BL = decoding.rows(torch.from_numpy(chances_BL))
        for row, chances in zip(rows_BL.tolist(), chances_BL, strict=True):
            for place, token in enumerate(row):
                edges = np.cumsum(shares(lm, [0, *row[:place]], drawn))  # 0: a text starts from an end
                assert token == np.searchsorted(edges, chances[place], side="right")
    assert len(np.unique(rows_BL)) > 4


def test_neither_a_mere_start_nor_a_row_that_stands_for_no_token_is_drawn() -> None:
    lm = lm_of("gpt2", vocab_size=len(WORDS) + 40)
    lm.tokenizer.bos_token = WORDS[1]
    chances_BL = torch.rand((64, LENGTH), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows_BL = Decoding(lm, 64, LENGTH, pytest.fail).rows(chances_BL)
    assert rows_BL.max() < len(WORDS) and not (rows_BL == 1).any()
    drawn = np.arange(len(WORDS) + 40) < len(WORDS)
    drawn[1] = False
    edges = np.cumsum(shares(lm, [1], drawn))
    firsts = np.searchsorted(edges, chances_BL[:, 0].numpy(), side="right")
    assert rows_BL[:, 0].tolist() == firsts.tolist()


def test_a_text_depends_on_seed_and_number_and_not_on_its_batch(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path / "gpt", "gpt2"))
    rows = {size: load_autoregressive(folder, CPU, LENGTH, size, pytest.fail).tokens(5, seed=3)
            for size in (1, 2, 5)}
    assert torch.equal(rows[1], rows[5]) and torch.equal(rows[2], rows[5])
    assert len(set(map(tuple, rows[5].tolist()))) == 5
    other = load_autoregressive(folder, CPU, LENGTH, 5, pytest.fail).tokens(5, seed=4)
    assert not torch.equal(other, rows[5])


def test_chances_are_even_numbers_between_0_and_1() -> None:
    chances_BL = chances_of(0, range(100), 50, CPU)
    assert chances_BL.min() > 0 and chances_BL.max() < 1
    counts = np.histogram(chances_BL, bins=10, range=(0, 1))[0]
    assert counts == pytest.approx([500] * 10, abs=90)  # 4 deviations


class Apart(TorchDispatchMode):
    """Fails where an operation touches another device than `meta`, which holds no numbers to be read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        devices = {part.device.type for part in tree_leaves((args, kwargs, found))
                   if isinstance(part, torch.Tensor)}
        assert devices == {"meta"}, f"{func} touches {devices}"
        return found


@pytest.mark.parametrize("family", CONFIGS)
def test_a_token_asks_the_device_for_nothing_so_that_a_graph_can_hold_it(family: str) -> None:
    lm = lm_of(family)
    lm.model.to("meta")
    decoding = Decoding(lm, 2, LENGTH, pytest.fail)
    with torch.inference_mode(), Apart():
        decoding._step()


def test_a_compiler_sees_a_token_as_one_piece_and_it_writes_the_same() -> None:
    lm = lm_of("gpt2")
    chances_BL = torch.rand((2, LENGTH), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decoding = Decoding(lm, 2, LENGTH, pytest.fail)
    plain_BL = decoding.rows(chances_BL)
    decoding._go_on = torch.compile(decoding._step, fullgraph=True, dynamic=False, backend="eager")
    assert torch.equal(decoding.rows(chances_BL), plain_BL)


def test_what_was_written_says_what_wrote_it(tmp_path: Path) -> None:
    folder, said = str(save_model(tmp_path / "gpt", "gpt2", num_rows=20)), list[str]()
    other = load_autoregressive(folder, CPU, LENGTH, 2, said.append)
    found = written(other, 3, seed=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert found["parameters"] == sum(weight.numel() for weight in model.parameters())  # its head is tied
    assert found["name"] == folder and found["random_weights"] is False and found["dtype"] == "float32"
    assert found["tokens"] == other.tokens(3, seed=1).tolist() and np.shape(found["tokens"]) == (3, LENGTH)
    assert found["tokens_per_s_batch_1"] > 0 and found["tokens_per_s_batch_2"] > 0 and found["batch"] == 2
    for row, text in zip(found["tokens"], found["texts"], strict=True):
        kept = row[:row.index(0)] if 0 in row else row
        assert text.split() == [WORDS[token] for token in kept if WORDS[token] != "[UNK]"]
    assert len(said) == 1 and said[0].startswith(f"3 texts of {folder}, token after token: ")


def test_an_embedding_that_is_no_head_is_not_read_whole(tmp_path: Path) -> None:
    lm = lm_of("llama", tie_word_embeddings=False)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    other = load_autoregressive(str(tmp_path), CPU, LENGTH, 1, pytest.fail)
    total = sum(weight.numel() for weight in lm.model.parameters())
    assert other.num_parameters == total - len(WORDS) * 16


@pytest.mark.parametrize(("family", "length", "problem", "fix"), [
    ("gpt2", NUM_POSITIONS + 1, f"has {NUM_POSITIONS} positions, but texts here are of 13 tokens",
     "trained on rows as long"),
    ("qwen", LENGTH, "layers that keep other things than keys and values", "name a plain transformer"),
])
def test_a_model_that_cannot_write_such_rows_is_refused(family, length, problem, fix, tmp_path) -> None:
    folder = str(save_model(tmp_path / "model", family))
    with pytest.raises(ConfigError) as caught:
        load_autoregressive(folder, CPU, length, 1, pytest.fail)
    assert problem in caught.value.problem and fix in caught.value.fix
    assert caught.value.place == "--autoregressive"


def test_a_model_that_starts_from_nothing_is_refused(tmp_path: Path) -> None:
    lm = lm_of("gpt2", bos_token_id=None, eos_token_id=None)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.eos_token = None
    lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no token that a text starts from"):
        load_autoregressive(str(tmp_path), CPU, LENGTH, 1, pytest.fail)


def test_a_model_that_is_not_here_or_torn_is_refused_with_what_to_type(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "torn", "gpt2")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    for name in ("nobody/no-such-model", str(folder)):
        with pytest.raises(ConfigError) as caught:
            load_autoregressive(name, CPU, LENGTH, 1, pytest.fail)
        assert f"the model {name} cannot be loaded: " in caught.value.problem
        assert "hf download openai-community/gpt2" in caught.value.fix
        assert "--autoregressive PATH" in caught.value.fix
    with pytest.raises(ConfigError, match="there is no folder"):
        load_autoregressive(str(tmp_path / "nothing"), CPU, LENGTH, 1, pytest.fail)
