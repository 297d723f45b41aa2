"""From the text of a prompt to what a generator is told of it. The only part of sampling that runs the frozen
token encoder.
"""

import torch

from trainer.config import TrainConfig
from trainer.contract import ConfigError
from trainer.generate import Generator, Prompt
from trainer.sizes import longest_prompt
from trainer.store import Store
from trainer.text_tokenizer import text_tokenizer
from trainer.token_encoder import TokenEncoder, load_token_encoder

_PLACE = "--prompt"


def read_prompt(generator: Generator, text: str, store: Store | None) -> Prompt:
    """Encode the text of a prompt, for all samples.

    Args:
        generator: Whose model was trained to read prompts.
        text: At least one token.
        store: Where a mirror of the token encoder may lie.

    Raises:
        ConfigError: The model reads no prompts, or this one is too long; the token encoder is not there.
        StoreError: The token encoder cannot be fetched.
    """
    config, device = generator.config, generator.model.hidden_mean.device
    tokens = prompt_tokens(config, generator.tokenizer, text)
    encoder = load_token_encoder(config.token_encoder, device, store=store, say=lambda _: None)
    return encoded(encoder, torch.tensor([tokens], device=device))


def prompt_tokens(config: TrainConfig, tokenizer: object, text: str) -> list[int]:
    """Ids of a prompt, as the text that was trained on has them. Raises ConfigError."""
    check_reads_prompts(config, _PLACE, "sample without --prompt")
    tokens = [int(token) for token in text_tokenizer(tokenizer, config.token_encoder.name).encode([text])[0]]
    longest = longest_prompt(config)
    if not 1 <= len(tokens) <= longest:
        raise ConfigError(f"it has {len(tokens)} tokens, but this model reads 1 to {longest}", place=_PLACE,
                          fix="shorten it" if tokens else "write some words")
    return tokens


def check_reads_prompts(config: TrainConfig, place: str, otherwise: str = "") -> None:
    """Refuse a model that was trained without prompts.

    Raises:
        ConfigError: At the place that asks for them; `otherwise` is what else may be typed.
    """
    if not config.model.prompt:
        fix = "launch a run with --set train.model.prompt=true" + (f", or {otherwise}" if otherwise else "")
        raise ConfigError("this model reads no prompts: it was trained with model.prompt off", place=place,
                          fix=fix)


def encoded(encoder: TokenEncoder, tokens_BP: torch.Tensor) -> Prompt:
    """Prompts of one length, without padding, as a generator takes them."""
    lengths_B = torch.full((len(tokens_BP),), tokens_BP.shape[1], device=tokens_BP.device)
    return Prompt(tokens_BP, encoder.prompt_states(tokens_BP, lengths_B), lengths_B)
