"""Mirrors of token encoders at their real sizes with random weights. Needs torch."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data.topics import topics

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from trainer.config import TokenEncoderConfig
from trainer.encoder_shape import KNOWN_CONFIGS, blocks_to_keep
from trainer.encoder_weights import OUTER_FILE, block_file
from trainer.manifest import StoredFile
from trainer.mirror_format import NEWEST, MirrorManifest, mirror_key
from trainer.packed_blocks import Layout, packed_layout, parameter_shapes, unpacked
from trainer.trunk import empty_trunk, family_of, truncated

_SCALE = 0.02


def write_random_mirror(config: TokenEncoderConfig, store: Path, device: str = "cuda") -> Path:
    """Write what `ldlm weights mirror` would, with weights drawn at random; returns its folder."""
    values = dict(KNOWN_CONFIGS[config.name])
    whole = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    kept = truncated(whole, blocks_to_keep(config.layer, whole.num_hidden_layers, config.name))
    folder = store / mirror_key(config.name, kept.num_hidden_layers, config.weights, None)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(kept.to_json_string(use_diff=False))
    _tokenizer(kept.vocab_size).save_pretrained(folder)
    trunk = empty_trunk(kept)
    outer = {name: tensor for name, tensor in trunk.named_parameters()
             if not name.startswith((family_of(kept).blocks, *family_of(kept).after))}
    save_file({name: _random(name, tuple(tensor.shape), device) for name, tensor in outer.items()},
              folder / OUTER_FILE)
    for index, block in enumerate(family_of(kept).block_list(trunk)):
        layout = packed_layout(parameter_shapes(block), config.weights)
        save_file(_random_block(layout, device), folder / block_file(index))
    files = [StoredFile(name=path.name, num_bytes=path.stat().st_size, sha256=_sha256(path))
             for path in sorted(folder.iterdir()) if path.is_file()]
    manifest = MirrorManifest(
        name=config.name, asked={NEWEST: datetime.now(UTC)}, commit=None, source="random",
        num_blocks=whole.num_hidden_layers, kept_blocks=kept.num_hidden_layers, weights=config.weights,
        files=files)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def _random_block(layout: Layout, device: str) -> dict[str, torch.Tensor]:
    packed = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=device)
    for entry in layout.tensors:
        if entry.num_scales:
            codes = entry.values(packed).view(torch.uint8)
            # Below 0x7f: every such code is a finite number in fp8, too.
            codes.copy_(torch.randint(0, 0x7f, codes.shape, dtype=torch.uint8, device=device))
            entry.scales(packed).fill_(_SCALE if entry.format == "nf4" else _SCALE / 448)
        else:
            entry.values(packed).copy_(_random(entry.name, entry.shape, device).to(device).reshape(-1))
    return {name: tensor.cpu().clone() for name, tensor in unpacked(packed, layout).items()}


def _random(name: str, shape: tuple[int, ...], device: str) -> torch.Tensor:
    if len(shape) == 1:
        return torch.full(shape, float("norm" in name or "ln_" in name), dtype=torch.bfloat16)
    return (_SCALE * torch.randn(shape, device=device)).to(torch.bfloat16).cpu()


def _tokenizer(num_rows: int) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE trained on Python's own prose in a second: 4,096 tokens, and others that no text has."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(topics.values(), vocab_size=4096, special_tokens=["<|endoftext|>"],
                                show_progress=False)
    serialized = json.loads(trained.to_str())
    vocabulary = serialized["model"]["vocab"]
    vocabulary |= {f"<nothing {token_id}>": token_id for token_id in range(len(vocabulary), num_rows)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(serialized)), eos_token="<|endoftext|>")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
