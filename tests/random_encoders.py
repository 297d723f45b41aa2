"""Tiny random language models in Hugging Face layout, of every family that the trainer reads. Needs torch."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeVisionConfig

WORDS = ["<|endoftext|>", "[CLS]", "[UNK]", *"abcdefghijklm"]
NUM_POSITIONS = 12
NUM_BLOCKS = 5
CAUSAL = ["gpt2", "qwen", "qwen-vl", "moe", "moe-vl"]
BIDIRECTIONAL = ["bert", "roberta", "distilbert"]
ALL = CAUSAL + BIDIRECTIONAL

_DENSE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4}
_VISION: dict[str, Any] = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                           "out_hidden_size": 32, "patch_size": 4, "num_position_embeddings": 16}


def save_model(folder: Path, family: str, num_rows: int = len(WORDS), *, dtype: torch.dtype = torch.float32,
               **saving: Any) -> Path:
    """Write config, weights and tokenizer of a model with random weights; returns the folder.

    Args:
        folder: Where to.
        family: One of ALL; `-vl` are vision-language checkpoints.
        num_rows: Of its embedding.
        dtype: Of the weights.
        saving: For `save_pretrained`: `max_shard_size`, say.
    """
    torch.manual_seed(0)
    model = _model(family, num_rows)
    for name, parameter in model.named_parameters():
        # Norms and biases are born alike; a mistake between two of them must show.
        torch.nn.init.normal_(parameter, 0.5 if "norm" in name.lower() or "ln_" in name else 0.0, 0.2)
    model.to(dtype).save_pretrained(folder, **saving)
    tokenizer(cls=family in BIDIRECTIONAL).save_pretrained(folder)
    return folder


def tokenizer(*, cls: bool) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of sixteen words: with an end-of-text token, or with BERT's separators."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"sep_token": WORDS[0], "cls_token": "[CLS]"} if cls else {"eos_token": WORDS[0]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **special)


def _model(family: str, num_rows: int) -> transformers.PreTrainedModel:
    bert: dict[str, Any] = {
        "vocab_size": num_rows, "max_position_embeddings": NUM_POSITIONS, "hidden_size": 32,
        "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 2, "intermediate_size": 64, "pad_token_id": 1}
    dense = transformers.Qwen3_5TextConfig(vocab_size=num_rows, intermediate_size=64, **_DENSE)
    moe = transformers.Qwen3_5MoeTextConfig(
        vocab_size=num_rows, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, **_DENSE)
    models = {
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=num_rows, n_positions=NUM_POSITIONS, n_embd=32, n_layer=NUM_BLOCKS, n_head=2)),
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**bert)),
        "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**bert)),
        "distilbert": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(
            vocab_size=num_rows, max_position_embeddings=NUM_POSITIONS, dim=32, n_layers=NUM_BLOCKS,
            n_heads=2, hidden_dim=64)),
        "qwen": lambda: transformers.Qwen3_5ForCausalLM(dense),
        "qwen-vl": lambda: transformers.Qwen3_5ForConditionalGeneration(transformers.Qwen3_5Config(
            text_config=dense.to_dict(), vision_config=Qwen3_5VisionConfig(**_VISION).to_dict())),
        "moe": lambda: transformers.Qwen3_5MoeForCausalLM(moe),
        "moe-vl": lambda: transformers.Qwen3_5MoeForConditionalGeneration(transformers.Qwen3_5MoeConfig(
            text_config=moe.to_dict(), vision_config=Qwen3_5MoeVisionConfig(**_VISION).to_dict())),
    }
    return models[family]()


def whole_model_states(folder: Path, tokens: torch.Tensor, layer: int,
                       mask: torch.Tensor | None = None) -> torch.Tensor:
    """`hidden_states[layer]` of the whole model as transformers itself loads and runs it."""
    config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
    model = transformers.AutoModel.from_pretrained(folder, config=config).eval()
    with torch.no_grad():
        return model(tokens, attention_mask=mask, output_hidden_states=True).hidden_states[layer]
