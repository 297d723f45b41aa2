"""What is benchmarked without a run: a profile's model with random weights, its token encoder not loaded."""

import torch
from torch import Tensor, nn

from trainer.bench_cases import Model
from trainer.chance import keyed_generator
from trainer.config import TrainConfig
from trainer.contract import ConfigError
from trainer.encoder_shape import EncoderShape, encoder_shape
from trainer.generate import Generator
from trainer.model import LatentDiffusionLM
from trainer.sizes import head_rows

_GAIN_STD = _BIAS_STD = 0.1


def profile_config(model: Model) -> TrainConfig:
    """The config of a profile at a length.

    Raises:
        ConfigError: There is no such profile.
    """
    values = {"profile": model.name, "steps": 1, "data": {"source": "none", "sequence_length": model.length}}
    try:
        return TrainConfig.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"the profile {model.name} cannot be used: {error}", place="--preset") from error


def shape_of(config: TrainConfig) -> EncoderShape:
    """Of the token encoder, by the table of known ones.

    Raises:
        ConfigError: It is not in it.
    """
    shape = encoder_shape(config.token_encoder.name)
    if shape is None:
        raise ConfigError(f"the sizes of {config.token_encoder.name} are not known",
                          place="token_encoder.name", fix="name another --preset")
    return shape


def shape_behind(model: LatentDiffusionLM) -> EncoderShape:
    """What generation has of a token encoder's shape: its width and the rows of its embedding."""
    rows = model.token_decoder.head.out_features
    return EncoderShape("", len(model.hidden_mean), rows, 0, 0, ())


def random_generator(config: TrainConfig, seed: int, device: torch.device) -> Generator:
    """A float32 model whose weights depend on seed, names and shapes alone; none of them is left at zero.

    What training starts at zero would hide errors. The latent encoder, which does not generate, is left out.
    """
    shape = shape_of(config)
    rows = None if config.model.head_vocabulary == "full" else torch.arange(head_rows(config, shape))
    with torch.device("meta"):  # no time for starts that are thrown away
        model = LatentDiffusionLM(config, shape.hidden_size, rows, shape.vocab_size)
    model.encoder = nn.Identity()  # type: ignore[assignment]
    model.to_empty(device=device).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        _fill(name, parameter, keyed_generator(device, "bench", seed, name))
    model.set_statistics(torch.zeros(shape.hidden_size), torch.ones(shape.hidden_size))
    if model.token_ids is not None and rows is not None:
        model.token_ids.copy_(rows)
    return Generator(config, model, None, shape.vocab_size, end_of_text_id=0)


def _fill(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Maps keep the size of what goes through them; gains are about 1, biases and positions small."""
    kind = name.rpartition(".")[2]
    if kind == "weight" and parameter.ndim == 2:
        parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
    elif kind == "weight":
        parameter.normal_(1, _GAIN_STD, generator=generator)
    elif kind == "bias":
        parameter.normal_(0, _BIAS_STD, generator=generator)
    else:  # positions and queries
        parameter.normal_(0, 0.5, generator=generator)
