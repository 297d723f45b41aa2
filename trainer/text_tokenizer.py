"""Text -> token ids, and how a tokenizer is told from another. No torch.

Ids come from the `tokenizers` library alone, so that worker processes start in a fraction of a second.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.contract import ConfigError
from trainer.shards import TokenizerIdentity

# Whatever a tokenizer does to text shows in these ids: case, accents, digits, white space, other scripts.
_PROBE = ("The Quick brown fox's 1,234.50 don't jump;  it\tcosts 3e-4 €?\n    def f(x): return x**2\r\n"
          "Ünïcödé ﬁ naïve Straße 东京 こんにちは Привет مرحبا 👩‍🚀 http://a.b/c?d=e_f#g ﾊﾝｶｸ "
          "supercalifragilistic\n\n")


@dataclass
class TextTokenizer:
    """A tokenizer that travels to other processes. Make it with `text_tokenizer`."""

    identity: TokenizerIdentity
    serialized: str = field(repr=False)
    _backend: Any = field(default=None, repr=False)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, uint32, without any special token: what looks like one in a text is text."""
        if self._backend is None:
            self._backend = _plain_backend(self.serialized)
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(found.ids, dtype=np.uint32) for found in encoded]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None}


def text_tokenizer(tokenizer: Any, name: str) -> TextTokenizer:
    """Take what is needed of a Hugging Face tokenizer.

    Args:
        tokenizer: A `transformers` tokenizer.
        name: How the user calls it.

    Raises:
        ConfigError: It is not one of the `tokenizers` library, or has no token that ends a document.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError("the tokenizer is not one of the `tokenizers` library", place=name,
                          fix="convert it: its folder needs a tokenizer.json")
    serialized = backend.to_str()
    plain = _plain_backend(serialized)
    content = [sorted(plain.get_vocab().items()), plain.encode(_PROBE, add_special_tokens=False).ids]
    identity = TokenizerIdentity(
        name=name, digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        vocab_size=1 + max(plain.get_vocab().values(), default=-1), end_of_text_id=end_of_text_id(tokenizer))
    return TextTokenizer(identity, serialized, plain)


def end_of_text_id(tokenizer: Any) -> int:
    """Id that ends a document: the end-of-text token, else the separator.

    Raises:
        ConfigError: The tokenizer has neither.
    """
    # Post-trained models name the end of a chat turn as their end of sequence; GPT-2's and Qwen's
    # pre-training closed documents with this one.
    end_of_document = tokenizer.get_vocab().get("<|endoftext|>")
    for token_id in (end_of_document, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token_id is not None:
            return int(token_id)
    raise ConfigError("the tokenizer has neither an end-of-text nor a separator token",
                      place="token_encoder.name", fix="set eos_token in the model's tokenizer_config.json")


def _plain_backend(serialized: str) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(serialized)
    # A caller that once padded or truncated has left its mark in there.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend
