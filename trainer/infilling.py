"""Text between two given ones, by replacement in the latents. No training prepares for it.

The trained way to tell the denoiser something is a prompt: a model that reads them is told what the text
begins with, under the guidance of prompts, as far as it reads. The end of a text it cannot be told so. So
every estimate of the clean latents is decoded too, the known tokens are put into the text, it is encoded
again by both encoders, and the estimate takes the latents at the known places from there; the solver goes
on from that. (Replacement in the clean estimate as in DDNM, arXiv 2212.00490; through the text is ours.) Each
step is done four times, noised back in between, as in RePaint, arXiv 2201.09865.

It is an approximation. On correlated Gaussians the unknown part moves about 0.8 of the way that the known
part asks for, and half of it if each step is done once (measured, ddim). And a latent stands for the token
at its place only by how training starts.

Shapes: B samples, L tokens, K latents, D channels of a latent.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.contract import ConfigError
from trainer.generate import Generator, Prompt, decode, sample_latents
from trainer.prompting import encoded
from trainer.sizes import longest_prompt
from trainer.store import Store
from trainer.text_tokenizer import text_tokenizer
from trainer.token_encoder import TokenEncoder, load_token_encoder

_PLACE = "--suffix"
_ROUNDS = 4  # of each step; of 2, 4 and 8 the best for 96 passes (measured, on correlated Gaussians)


class Known(NamedTuple):
    """Tokens (L,) of a text, where (L,) they are known, and how many are at its beginning."""

    tokens_L: Tensor
    is_known_L: Tensor
    num_first: int

    def put_into(self, tokens_BL: Tensor) -> Tensor:
        """Other texts with what is known in its place."""
        return torch.where(self.is_known_L, self.tokens_L, tokens_BL)


@dataclass(frozen=True, kw_only=True)
class Infiller(Generator):
    """A generator that knows some tokens of its texts, and fills in the others.

    Attributes:
        encoder: The frozen token encoder.
        known: What it knows.
    """

    encoder: TokenEncoder
    known: Known

    def to_texts(self, tokens_BL: Tensor) -> list[str]:
        """Whole texts: behind an end of text in the gap stands what was asked for."""
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens_BL.tolist()]

    def beginning(self) -> Prompt | None:
        """What the texts begin with as a prompt, as far as the model reads; None if it is told nothing."""
        num = min(self.known.num_first, longest_prompt(self.config))
        return encoded(self.encoder, self.known.tokens_L[None, :num]) if num else None

    def batch(self, indices: range, seed: int, prompt: Prompt | None) -> Tensor:
        """As of a generator, where a prompt is the `beginning`."""
        latents = sample_latents(self.model, indices, seed, self.config.sampling, self.warp,
                                 self.context(len(indices), prompt), self.mended, _ROUNDS)
        return self.known.put_into(decode(self.model, latents, self.num_tokens))

    @torch.inference_mode()
    def mended(self, estimate_BKD: Tensor) -> Tensor:
        """An estimate of clean latents with those of the known tokens in their places."""
        tokens_BL = self.known.put_into(decode(self.model, estimate_BKD, self.num_tokens))
        latents_BKD = self.model.encoder(self.model.normalise(self.encoder.hidden_states(tokens_BL)))
        return torch.where(self.known.is_known_L[:, None], latents_BKD, estimate_BKD)


def infiller(generator: Generator, before: str | None, after: str, store: Store | None) -> Infiller:
    """A generator of texts that begin and end as given.

    Args:
        generator: With the latent encoder.
        before: First words; None: nothing is known of the beginning.
        after: Last words.
        store: Where a mirror of the token encoder may lie.

    Raises:
        ConfigError: The model has not as many latents as tokens, or no latent encoder; or a text has no
            tokens, or the two leave nothing between them; or the token encoder is not there.
        StoreError: The token encoder cannot be fetched.
    """
    config, device = generator.config, generator.model.hidden_mean.device
    if not hasattr(generator.model, "encoder"):
        raise ConfigError("this export has no latent encoder", place=_PLACE,
                          fix="sample from the run, or make the export by: ldlm export RUN --with-encoder")
    if config.num_latents != config.data.sequence_length:
        raise ConfigError(f"this model makes {config.num_latents} latents of {config.data.sequence_length} "
                          "tokens, so no token has a place among them", place=_PLACE,
                          fix="infill by a model with as many latents as tokens")
    known = known_tokens(config, generator.tokenizer, before, after)
    encoder = load_token_encoder(config.token_encoder, device, store=store, say=lambda _: None)
    known = known._replace(tokens_L=known.tokens_L.to(device), is_known_L=known.is_known_L.to(device))
    return Infiller(**vars(generator), encoder=encoder, known=known)


def known_tokens(config: TrainConfig, tokenizer: object, before: str | None, after: str) -> Known:
    """Where the two texts stand in a sequence. Raises ConfigError: see `infiller`."""
    length = config.data.sequence_length
    first, last = (found.tolist() for found in
                   text_tokenizer(tokenizer, config.token_encoder.name).encode([before or "", after]))
    for place, is_given, tokens in (("--prompt", before is not None, first), (_PLACE, True, last)):
        if is_given and not tokens:
            raise ConfigError("it has 0 tokens", place=place, fix="write some words, or leave it out")
    num_between = length - len(first) - len(last)
    if num_between < 1:
        raise ConfigError(f"the two texts have {len(first)} and {len(last)} tokens, which leaves nothing of "
                          f"{length} between them", place=_PLACE, fix="shorten them")
    is_known = [True] * len(first) + [False] * num_between + [True] * len(last)
    return Known(torch.tensor(first + [0] * num_between + last), torch.tensor(is_known),
                 len(first))
