"""Trains the judge of one text: a larger autoregressive model, saved for `ldlm evaluate --judge FOLDER`.

    python tests/baselines/judge.py STORE OUT [--minutes 8] [--parameters 60e6] [--seed 0]

Its ids are those of the text's tokenizer, which is saved beside it. Another seed, size and shape than the
autoregressive baseline; still a relative of it on the same text, which is why its name goes with every
number. Saved in half precision: at 60e6 parameters 120 MB.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from prepared_rows import PreparedRows, read_rows
from record import options_of
from torch import Tensor
from training import device, look, train, width_for
from transformers import GPT2Config, GPT2LMHeadModel

_HELDOUT_ROWS = 64


def build(rows: PreparedRows, vocab_size: int, length: int, width: int, layers: int) -> GPT2LMHeadModel:
    """GPT-2 over all ids of the tokenizer."""
    end = rows.end_of_text_id
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=length, n_embd=width, n_layer=layers,
        n_head=max(1, width // 64), resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2, bos_token_id=end,
        eos_token_id=end)).to(device())


def next_token_loss(model: GPT2LMHeadModel, rows_BL: Tensor) -> Tensor:
    """Mean negative log-likelihood of every token but the first of a row, as perplexity counts it."""
    logits_BLV = model(input_ids=rows_BL[:, :-1]).logits
    return F.cross_entropy(logits_BLV.float().flatten(0, 1), rows_BL[:, 1:].flatten())


def main(argv: list[str] | None = None) -> Path:
    """Train and save; returns the folder."""
    options = options_of(__doc__ or "", argv, parameters=60e6)
    rows = read_rows(options.store, options.text, options.length)
    seed = options.seed + 1000  # never a baseline's
    torch.manual_seed(seed)
    num_ids = max(rows.tokenizer.get_vocab().values()) + 1
    model = build(rows, num_ids, 2 * options.length,
                  width_for(options.parameters, num_ids, options.layers), options.layers)
    # Twice as long as samples: their words may be cut into more tokens than they were made of.
    known_NL = rows.train_NL.reshape(-1)
    train_NL = rows.token_ids[known_NL[:len(known_NL) // (2 * options.length) * 2 * options.length]
                              .reshape(-1, 2 * options.length)]
    is_known_N = (rows.heldout_NL < rows.special).all(axis=1)
    heldout_NL = torch.from_numpy(rows.token_ids[rows.heldout_NL[is_known_N]]).to(device())

    def heldout(every: int) -> float:
        batches = heldout_NL[::every].split(_HELDOUT_ROWS)
        total = sum(float(next_token_loss(model, rows_BL)) * len(rows_BL) for rows_BL in batches)
        return total / len(heldout_NL[::every])

    trained = train(model, lambda rows_BL: next_token_loss(model, rows_BL), lambda: heldout(4), train_NL,
                    minutes=options.minutes, batch=options.batch, learning_rate=options.learning_rate,
                    seed=seed)
    perplexity = np.exp(look(model, lambda: heldout(1)))
    model.half().save_pretrained(options.out)
    rows.tokenizer.eos_token = rows.tokenizer.convert_ids_to_tokens(rows.end_of_text_id)
    rows.tokenizer.save_pretrained(options.out)
    print(f"{options.out}: {sum(weight.numel() for weight in model.parameters()):,} parameters, "
          f"{trained.steps:,} steps in {trained.seconds:.0f} s, held-out perplexity "
          f"{perplexity:.1f}", flush=True)
    return Path(options.out)


if __name__ == "__main__":
    main()
    sys.exit(0)
