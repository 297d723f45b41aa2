"""An autoregressive transformer (GPT-2 of transformers) trained from scratch, as a baseline.

    python tests/baselines/autoregressive.py STORE OUT [--minutes 8] [--parameters 28e6] [--seed 0]
        [--save-model]

With --save-model it stands beside ours: ldlm evaluate RUN --autoregressive OUT/autoregressive-seed-0.

Shapes: B rows, L tokens, V ids and the special one, which starts a row.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from prepared_rows import PreparedRows, read_rows
from record import generation, options_of, write
from torch import Tensor
from training import device, dtype, in_bf16, look, train, width_for
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

_HELDOUT_ROWS = 128


def build(num_ids: int, length: int, width: int, layers: int, dropout: float = 0.1) -> GPT2LMHeadModel:
    """GPT-2 of a size, with an id more than `num_ids` and a position more than `length`: the start."""
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=num_ids + 1, n_positions=length + 1, n_embd=width, n_layer=layers,
        n_head=max(1, width // 64), resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        bos_token_id=num_ids, eos_token_id=num_ids)).to(device())


def loss_of(model: GPT2LMHeadModel, rows_BL: Tensor, special: int) -> Tensor:
    """Mean negative log-likelihood of the known tokens of rows, each row from its start."""
    starts_B1 = torch.full_like(rows_BL[:, :1], special)
    logits_BLV = model(input_ids=torch.cat([starts_B1, rows_BL[:, :-1]], dim=1)).logits
    return F.cross_entropy(logits_BLV.float().flatten(0, 1), rows_BL.flatten(), ignore_index=special)


def heldout(model: GPT2LMHeadModel, rows_NL: np.ndarray, special: int) -> float:
    """Loss over held-out rows, nats per known token."""
    total, count = 0.0, 0
    for rows_BL in torch.from_numpy(rows_NL).to(device()).split(_HELDOUT_ROWS):
        known = int((rows_BL != special).sum())
        total, count = total + float(loss_of(model, rows_BL, special)) * known, count + known
    return total / count


@torch.inference_mode()
def sample(model: GPT2LMHeadModel, num: int, length: int, temperature: float, seed: int) -> np.ndarray:
    """Rows (num, L), one token after the other with kept keys and values; never the special id."""
    random = torch.Generator(device()).manual_seed(seed)
    special = model.config.vocab_size - 1
    latest_B1 = torch.full((num, 1), special, device=device())
    cache, drawn = DynamicCache(config=model.config), []
    for _ in range(length):
        with in_bf16():
            logits_BV = model(input_ids=latest_B1, past_key_values=cache, use_cache=True).logits[:, -1]
        chances_BV = (logits_BV[:, :special].float() / temperature).softmax(-1)
        latest_B1 = torch.multinomial(chances_BV, 1, generator=random)
        drawn.append(latest_B1)
    return torch.cat(drawn, dim=1).cpu().numpy()


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, sample at every temperature, write the record."""
    options = options_of(__doc__ or "", argv)
    rows = read_rows(options.store, options.text, options.length)
    torch.manual_seed(options.seed)
    model = build(rows.special, options.length, width_for(options.parameters, rows.special, options.layers),
                  options.layers)
    trained = train(
        model, lambda rows_BL: loss_of(model, rows_BL, rows.special),
        lambda: heldout(model, rows.looks_NL, rows.special), rows.train_NL, minutes=options.minutes,
        batch=options.batch, learning_rate=options.learning_rate, seed=options.seed)
    loss_at_end = look(model, lambda: heldout(model, rows.heldout_NL, rows.special))
    model.eval()
    generations = [generation(rows, sampler(model, rows, temperature), options.samples, options.seed,
                              {"temperature": temperature}, dtype()) for temperature in options.temperatures]
    record = {
        "model": "autoregressive", "seed": options.seed, "device": str(device()),
        "parameters": sum(weight.numel() for weight in model.parameters()), "steps": trained.steps,
        "train_seconds": trained.seconds, "train_losses": trained.train_losses,
        "heldout_losses": trained.heldout_losses,
        "heldout_perplexity": float(np.exp(loss_at_end)), "heldout_is": "exact",
        "generations": generations}
    path = write(options.out, record)
    if options.save_model:
        save(model, rows, path.with_suffix(""))
    return record


def save(model: GPT2LMHeadModel, rows: PreparedRows, folder: Path) -> None:
    """Weights in half precision, and a tokenizer of the ids that they have rows for."""
    tokenizer = rows.own_tokenizer()
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"ldlm evaluate RUN --autoregressive {folder}", flush=True)


def sampler(model: GPT2LMHeadModel, rows: PreparedRows,
            temperature: float) -> Callable[[int, int], np.ndarray]:
    """(number, seed) -> rows."""
    length = rows.train_NL.shape[1]
    return lambda num, seed: sample(model, num, length, temperature, seed)


if __name__ == "__main__":
    main()
    sys.exit(0)
