"""Masked diffusion (MDLM, arXiv 2406.07524) trained from scratch, as a baseline.

    python tests/baselines/masked.py STORE OUT [--minutes 8] [--parameters 28e6] [--seed 0]

Absorbing noise with the log-linear schedule alpha_t = 1 - t; the network is told no time. SUBS: it gives
the mask no chance, and a token that stands is carried over. Loss (Eq. 10): E_t of 1/t times the
cross-entropy at masked places, a bound on the negative log-likelihood.

Shapes: B rows, L tokens, V ids and the special one, which is the mask.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from prepared_rows import PreparedRows, read_rows
from record import generation, options_of, speeds_of, write
from torch import Tensor, nn
from training import device, dtype, in_bf16, look, train, width_for
from transformers import ModernBertConfig, ModernBertForMaskedLM

_EARLIEST = 1e-3  # MDLM's sampling_eps: 1/t must not explode
_HELDOUT_ROWS, _HELDOUT_TIMES = 128, 4
# Rows of ids with masks -> logits.
Network = Callable[[Tensor], Tensor]


def build(num_ids: int, length: int, width: int, layers: int) -> ModernBertForMaskedLM:
    """A bidirectional transformer with rotary positions and one id more than `num_ids`: the mask.

    Its gated MLP is 8/3 wide, so that a block has the 12 width^2 parameters of GPT-2's.
    """
    return ModernBertForMaskedLM(ModernBertConfig(
        vocab_size=num_ids + 1, hidden_size=width, intermediate_size=8 * width // 3,
        num_hidden_layers=layers, num_attention_heads=max(1, width // 64), max_position_embeddings=length,
        layer_types=["full_attention"] * layers, attention_dropout=0.1, embedding_dropout=0.1,
        mlp_dropout=0.1, pad_token_id=None, bos_token_id=None, eos_token_id=None, cls_token_id=None,
        sep_token_id=None, initializer_range=width**-0.5 / 2)).to(device())


def network_of(model: nn.Module) -> Network:
    """Logits of a transformer that is told nothing but the ids."""
    return lambda rows_BL: model(input_ids=rows_BL).logits


def times(num: int, random: torch.Generator) -> Tensor:
    """Low-discrepancy times in (0, 1], one in each of `num` equal parts."""
    offset = torch.rand((), generator=random, device=random.device)
    evenly_B = (torch.arange(num, device=random.device) + offset) / num
    return _EARLIEST + (1 - _EARLIEST) * evenly_B


def bound(network: Network, rows_BL: Tensor, t_B: Tensor, special: int, random: torch.Generator) -> Tensor:
    """Negative evidence lower bound of each row at its time, nats per token, (B,).

    Unknown tokens of held-out rows are special from the start; they are not scored.
    """
    is_masked_BL = torch.rand(rows_BL.shape, generator=random, device=rows_BL.device) < t_B[:, None]
    log_p_BLV = log_chances(network(torch.where(is_masked_BL, special, rows_BL)), special)
    is_scored_BL = is_masked_BL & (rows_BL != special)
    losses_BL = F.nll_loss(log_p_BLV.transpose(1, 2), rows_BL, ignore_index=special, reduction="none")
    return (losses_BL * is_scored_BL).sum(1) / t_B / (rows_BL != special).sum(1).clamp(min=1)


def log_chances(logits: Tensor, special: int) -> Tensor:
    """Log-probabilities of the tokens, float32 (..., V + 1); of the mask, minus infinity (SUBS)."""
    logits = logits.float()
    is_mask = torch.arange(logits.shape[-1], device=logits.device) == special
    return logits.masked_fill(is_mask, -torch.inf).log_softmax(-1)


@torch.inference_mode()
def states(network: Network, num: int, length: int, special: int, steps: int, temperature: float,
           random: torch.Generator) -> Iterator[Tensor]:
    """Ancestral sampling from masks alone: the rows after each of the steps, the last without a mask.

    From time t to s a mask stays with chance s/t, otherwise the network's token takes its place. A pass
    is kept for as long as no row has changed since, as the network is told no time.
    """
    rows_BL = torch.full((num, length), special, device=random.device)
    logits_BLV = None
    for step in range(steps):
        t, s = 1 - step / steps, 1 - (step + 1) / steps
        stays_BL = torch.rand(rows_BL.shape, generator=random, device=random.device) < s / t
        goes_BL = (rows_BL == special) & ~stays_BL
        if goes_BL.any():
            logits_BLV = network(rows_BL) if logits_BLV is None else logits_BLV
            # float64: in float32 small chances are cut off, which lowers the temperature unseen.
            chances_NV = (log_chances(logits_BLV[goes_BL], special).double() / temperature).softmax(-1)
            rows_BL = rows_BL.clone()
            rows_BL[goes_BL] = torch.multinomial(chances_NV, 1, generator=random)[:, 0]
            logits_BLV = None
        yield rows_BL


def sampler(model: nn.Module, rows: PreparedRows, steps: int,
            temperature: float) -> Callable[[int, int], np.ndarray]:
    """(number, seed) -> rows."""
    def generate(num: int, seed: int) -> np.ndarray:
        random = torch.Generator(device()).manual_seed(seed)
        with in_bf16():
            *_, last_BL = states(network_of(model), num, rows.train_NL.shape[1], rows.special, steps,
                                 temperature, random)
        return last_BL.cpu().numpy()

    return generate


def heldout(model: nn.Module, rows_NL: np.ndarray, special: int) -> float:
    """The bound over held-out rows, at a few times each, always the same; nats per token."""
    random, found, weights = torch.Generator(device()).manual_seed(0), [], []
    for _ in range(_HELDOUT_TIMES):
        for rows_BL in torch.from_numpy(rows_NL).to(device()).split(_HELDOUT_ROWS):
            t_B = times(len(rows_BL), random)
            found.append(bound(network_of(model), rows_BL, t_B, special, random))
            weights.append((rows_BL != special).sum(1))
    return float((torch.cat(found) * torch.cat(weights)).sum() / torch.cat(weights).sum())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, sample at every number of steps and temperature, write the record."""
    options = options_of(__doc__ or "", argv)
    rows = read_rows(options.store, options.text, options.length)
    torch.manual_seed(options.seed)
    model = build(rows.special, options.length, width_for(options.parameters, rows.special, options.layers),
                  options.layers)
    random = torch.Generator(device()).manual_seed(options.seed)

    def loss(rows_BL: Tensor) -> Tensor:
        return bound(network_of(model), rows_BL, times(len(rows_BL), random), rows.special, random).mean()

    trained = train(
        model, loss, lambda: heldout(model, rows.looks_NL, rows.special), rows.train_NL,
        minutes=options.minutes, batch=options.batch, learning_rate=options.learning_rate, seed=options.seed)
    loss_at_end = look(model, lambda: heldout(model, rows.heldout_NL, rows.special))
    model.eval()
    # No temperature is faster than another.
    speeds = {steps: speeds_of(sampler(model, rows, steps, 1.0), options.samples, options.seed)
              for steps in options.sampling_steps}
    generations = [
        generation(rows, sampler(model, rows, steps, temperature), options.samples, options.seed,
                   {"steps": steps, "temperature": temperature}, dtype(), speeds[steps])
        for steps in options.sampling_steps for temperature in options.temperatures]
    record = {
        "model": "masked", "seed": options.seed, "device": str(device()),
        "parameters": sum(weight.numel() for weight in model.parameters()), "steps": trained.steps,
        "train_seconds": trained.seconds, "train_losses": trained.train_losses,
        "heldout_losses": trained.heldout_losses,
        "heldout_perplexity": float(np.exp(loss_at_end)), "heldout_is": "upper bound",
        "generations": generations}
    write(options.out, record)
    return record


if __name__ == "__main__":
    main()
    sys.exit(0)
