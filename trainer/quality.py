"""How good generated text is, by numbers: perplexity under a judge, entropy, repetition, MAUVE.

Shapes: N texts, L tokens of the longest, V ids of the judge. A row is the token ids of one text.
"""

import contextlib
import importlib.util
import io
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.causal_lm import load_causal_lm
from trainer.contract import ConfigError
from trainer.health import distinct
from trainer.measure_options import FIELDS_JUDGE
from trainer.trunk import quiet

FIELD_TOKENS = 1024  # of a text that the field scores (MDLM, Duo)
_GPT2_NAMES = (FIELDS_JUDGE, "gpt2-large")
_BATCH_LOGITS = 2**27  # 512 MiB of float32 at a time (guess)
_MAUVE_LEAST_TEXTS = 20  # its clusters are a tenth of them, at least 2
MAUVE_FEW_TEXTS = 1000  # below, it says little (its authors take 5,000)
Row = Sequence[int]


@dataclass(frozen=True)
class Judge:
    """A causal language model that says how likely a text is.

    Attributes:
        name: As it was asked for: a model of the Hub, or a folder.
        revision: Commit of the Hub; None for a folder.
        model: With a language modelling head, on the device where it computes, in evaluation mode.
        tokenizer: Its own.
        max_tokens: Texts are cut after so many of its tokens.
        end_id: Its end of text; None if it has none.
    """

    name: str
    revision: str | None
    model: Any
    tokenizer: Any
    max_tokens: int
    end_id: int | None

    @property
    def is_the_fields(self) -> bool:
        """True for GPT-2 large from the Hub, whose perplexities the field compares."""
        return self.name in _GPT2_NAMES and self.revision is not None

    def key(self, metric: str) -> str:
        """What a metric by this judge is called: the field's name is for the field's judge alone."""
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(self.name).name).strip("-")
        return metric if self.is_the_fields else f"{metric}_by_{slug or 'judge'}"

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Its token ids of each text, cut to `max_tokens`, without tokens put around it."""
        with quiet():
            encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [list(row[:self.max_tokens]) for row in encoded]


def load_judge(name: str = FIELDS_JUDGE, device: torch.device | str = "cpu", *, revision: str | None = None,
               max_tokens: int = FIELD_TOKENS) -> Judge:
    """Load a judge: bfloat16 on a GPU, float32 elsewhere. No code of the model's folder runs.

    Args:
        name: Causal language model of the Hub, or a folder that `save_pretrained` has written.
        device: Where it computes.
        revision: Commit or tag on the Hub.
        max_tokens: Longest text; a judge with fewer positions cuts earlier.

    Raises:
        ConfigError: There is no such model, it is not here and cannot be fetched, or it is none that
            predicts the next token.
    """
    found = load_causal_lm(name, device, role="the judge", option="--judge", example=FIELDS_JUDGE,
                           revision=revision)
    return Judge(name, found.revision, found.model, found.tokenizer,
                 min(max_tokens, found.most_tokens or max_tokens), found.tokenizer.eos_token_id)


def perplexity(judge: Judge, rows: Sequence[Row], contexts: Sequence[Row] = ()) -> float | None:
    """Generative perplexity: exp of the mean negative log-likelihood over all scored tokens of all texts.

    Scored is every token but the first of a text, of ends of text only the first (MDLM, Duo). Padding
    never is; in the field's code the first of it passes for an end of text, as if it had been written.

    Args:
        judge: Who scores.
        rows: The judge's own ids, from `Judge.rows`.
        contexts: Ids that stand before each text: read, not scored. The first of a text then counts too.

    Returns:
        At least 1; None when no token is scored.
    """
    total, count = 0.0, 0
    for ids_BL, counts_BL, read_B in _batches(judge, rows, contexts or [()] * len(rows)):
        is_scored_BL = _is_scored(judge, ids_BL, counts_BL, read_B)[:, 1:]
        losses_BL = _losses(judge, ids_BL, counts_BL) * is_scored_BL
        total += losses_BL.double().sum().item()
        count += int(is_scored_BL.sum())
    return math.exp(total / count) if count else None


def _batches(judge: Judge, rows: Sequence[Row],
             contexts: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Right-padded ids, a mask of those that are no padding, and how many of each are context; texts of
    like length together."""
    told = [((*context, *row)[:judge.max_tokens], len(context))
            for context, row in zip(contexts, rows, strict=True)]
    by_length = sorted((one for one in told if len(one[0]) > 1), key=lambda one: len(one[0]), reverse=True)
    while by_length:
        size = max(1, _BATCH_LOGITS // (len(by_length[0][0]) * judge.model.config.vocab_size))
        batch, by_length = by_length[:size], by_length[size:]
        tensors = [torch.tensor(ids) for ids, _ in batch]
        ids_BL = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        lengths_B, read_B = torch.tensor([(len(ids), num_read) for ids, num_read in batch]).unbind(1)
        counts_BL = torch.arange(ids_BL.shape[1]) < lengths_B[:, None]
        yield tuple(part.to(judge.model.device) for part in (ids_BL, counts_BL, read_B))  # type: ignore[misc]


@torch.inference_mode()
def _losses(judge: Judge, ids_BL: Tensor, counts_BL: Tensor) -> Tensor:
    """Negative log-likelihood of each token but the first, nats, float32 (B, L - 1)."""
    logits_BLV = judge.model(input_ids=ids_BL, attention_mask=counts_BL.long()).logits[:, :-1]
    targets_BL = ids_BL[:, 1:]
    # Flat: with the vocabulary in the middle, as the function takes it otherwise, it takes twice the time.
    losses = F.cross_entropy(logits_BLV.float().flatten(0, 1), targets_BL.flatten(), reduction="none")
    return losses.view(targets_BL.shape)


def _is_scored(judge: Judge, ids_BL: Tensor, counts_BL: Tensor, read_B: Tensor) -> Tensor:
    is_end_BL = ids_BL == (-1 if judge.end_id is None else judge.end_id)
    is_own_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) >= read_B[:, None]
    return counts_BL & is_own_BL & (~is_end_BL | (is_end_BL.cumsum(1) == 1))


def unigram_entropy(rows: Sequence[Row]) -> float | None:
    """Shannon entropy of a text's token counts in nats, mean over texts; an empty text has 0.

    Compare only values of the same ids and lengths: it is at most log L. None without any text.
    """
    entropies = []
    for row in rows:
        shares = np.unique(np.asarray(row), return_counts=True)[1] / max(1, len(row))
        entropies.append(float(-(shares * np.log(shares)).sum()))
    return float(np.mean(entropies)) if entropies else None


def repetition(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of n-grams, over all texts, that are the first of their kind; more texts, lower shares.

    Returns:
        distinct_1 to distinct_4, each in [0, 1], and diversity: the product of those of 2 to 4.
    """
    shares = {f"distinct_{n}": distinct(rows, n) for n in range(1, 5)}
    return shares | {"diversity": math.prod(shares[f"distinct_{n}"] for n in (2, 3, 4))}


def mauve(judge: Judge, rows: Sequence[Row], reference: Sequence[Row], seed: int = 25) -> float | None:
    """MAUVE of generated against reference texts, in (0, 1], by mauve-text with its own settings.

    Features are the judge's last hidden state at the last token of a text. As many of either side are
    taken as the smaller has: below `MAUVE_FEW_TEXTS` the value says little.

    Returns:
        None when there are fewer than 20 texts on a side.
    """
    from mauve import compute_mauve
    from mauve.utils import featurize_tokens_from_model

    num = min(sum(len(row) > 0 for row in side) for side in (rows, reference))
    if num < _MAUVE_LEAST_TEXTS:
        return None
    features = []
    for side in (rows, reference):
        tokens = [torch.tensor(row) for row in side if len(row)][:num]
        with quiet(), _without_stderr():
            found_ND = featurize_tokens_from_model(judge.model, tokens, batch_size=8)
        features.append(found_ND.float().numpy())
    with _without_stderr():
        return float(compute_mauve(p_features=features[0], q_features=features[1], seed=seed).mauve)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """mauve-text shows bars and faiss, in C++, always a warning; neither can be told not to."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def require_evaluation_tools(*, has_mauve: bool = True) -> None:
    """Ask for the packages of the extra `evaluate`. Raises ConfigError when one is missing."""
    for package, module in (*([("mauve-text", "mauve")] if has_mauve else []), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{package} is not installed", place="the trainer's environment",
                              fix="make evaluation-tools (once, about 400 MB)"
                                  + (", or leave MAUVE out: --no-mauve" if module == "mauve" else ""))


def text_scores(judge: Judge, rows: Sequence[Row], reference: Sequence[Row] = (),
                contexts: Sequence[Row] = ()) -> dict[str, float | None]:
    """All metrics of some texts. Names of those that depend on the judge, or its ids, carry its name.

    Args:
        judge: Who scores.
        rows: The judge's own ids of what was generated, see `trainer.judge_rows`.
        reference: The same of real texts, for MAUVE; without them it is left out. As many as there are
            rows, or repetition and MAUVE are not to be compared.
        contexts: What each row goes on from. Its perplexity is then that of a completion, given its
            prompt, and is called so: it is not the field's generative perplexity.
    """
    name = "perplexity_given_prompt" if contexts else "generative_perplexity"
    by_judge = {name: perplexity(judge, rows, contexts), "entropy": unigram_entropy(rows), **repetition(rows)}
    if reference:
        by_judge["mauve"] = mauve(judge, rows, reference)
    scores = {judge.key(name): value for name, value in by_judge.items()}
    return scores | {"num_texts": len(rows), "tokens_per_text": sum(map(len, rows)) / max(1, len(rows))}
