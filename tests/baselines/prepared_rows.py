"""The text that every baseline learns from: rows of one prepared text, as the trainer cuts them.

Shapes: N rows, L tokens of a row.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
_START = "[START]"
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

from trainer.shard_writer import TOKEN  # noqa: E402
from trainer.shards import Shard, find_manifest  # noqa: E402
from trainer.store import Store, local_store_url, open_store, sub_address  # noqa: E402


@dataclass(frozen=True)
class PreparedRows:
    """Rows in ids of their own: those that training holds, numbered from 0.

    Attributes:
        train_NL, heldout_NL: int64; held-out tokens that training does not hold are `special`.
        heldout_tokens_NL: The same in the tokenizer's ids.
        token_ids: The tokenizer's id of each; as many as there are ids.
        tokenizer: Of the text.
        end_of_text_id: The tokenizer's id that ends a document.
    """

    train_NL: np.ndarray
    heldout_NL: np.ndarray
    heldout_tokens_NL: np.ndarray
    token_ids: np.ndarray
    tokenizer: Any
    end_of_text_id: int

    @property
    def special(self) -> int:
        """The one id that stands for no token: start of a row, mask, unknown."""
        return len(self.token_ids)

    @property
    def looks_NL(self) -> np.ndarray:
        """A quarter of the held-out rows, for looks on the way."""
        return self.heldout_NL[::4]

    def texts(self, rows_NL: np.ndarray) -> tuple[list[list[int]], list[str]]:
        """The tokenizer's ids of some rows, and to be shown their texts up to the first end of text."""
        from trainer.generate import to_text

        ids = self.token_ids[rows_NL].tolist()
        return ids, to_text(self.tokenizer, ids, self.end_of_text_id)


    def own_tokenizer(self) -> Any:
        """The tokenizer in the rows' own numbers: of its pieces only those that training holds, and a start.

        Text in, it knows no other piece; tokens out, they mean what they mean there.
        """
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        known = json.loads(self.tokenizer.backend_tokenizer.to_str())
        pieces = self.tokenizer.convert_ids_to_tokens(self.token_ids.tolist())
        ids = {piece: number for number, piece in enumerate([*pieces, _START])}
        known["model"]["vocab"] = ids
        if "merges" in known["model"]:
            known["model"]["merges"] = [pair for pair in known["model"]["merges"]
                                        if {*pair, "".join(pair)} <= ids.keys()]
        known["added_tokens"] = [one | {"id": ids[one["content"]]} for one in known["added_tokens"]
                                 if one["content"] in ids]
        known |= {"post_processor": None, "padding": None, "truncation": None}  # of the old ids
        end = pieces[int(np.searchsorted(self.token_ids, self.end_of_text_id))]
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(known)),
                                       bos_token=_START, eos_token=end)


def spread(rows_NL: np.ndarray, num: int) -> np.ndarray:
    """At most so many of some rows, evenly over all of them."""
    return rows_NL[np.linspace(0, len(rows_NL) - 1, min(num, len(rows_NL))).round().astype(int)]


def read_rows(store: Path, name: str, length: int) -> PreparedRows:
    """Read a prepared text of a local store: `data/NAME` below it."""
    from trainer.config import TokenEncoderConfig
    from trainer.token_encoder import load_tokenizer

    whole = open_store(local_store_url(store))
    prepared = open_store(sub_address(whole.address, f"data/{name}"))
    manifest = find_manifest(prepared)
    if manifest is None:
        sys.exit(f"{prepared.url} holds no prepared text: ldlm data prepare")
    identity = manifest.preparation.tokenizer
    train, heldout = (np.concatenate([_rows(prepared, shard, length) for shard in manifest.of(split)])
                      for split in ("train", "heldout"))
    token_ids, compact = np.unique(train, return_inverse=True)
    places = np.searchsorted(token_ids, heldout).clip(max=len(token_ids) - 1)
    known = np.where(token_ids[places] == heldout, places, len(token_ids))
    tokenizer = load_tokenizer(TokenEncoderConfig(name=identity.name), whole, say=lambda _: None)
    return PreparedRows(compact.reshape(train.shape), known, heldout, token_ids.astype(np.int64), tokenizer,
                        identity.end_of_text_id)


def _rows(store: Store, shard: Shard, length: int) -> np.ndarray:
    tokens = np.frombuffer(store.get(shard.key), dtype=TOKEN).astype(np.int64)
    return tokens[:len(tokens) // length * length].reshape(-1, length)
