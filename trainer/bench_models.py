"""What is benchmarked without a run: a profile's model with random weights, its token encoder not loaded."""

from pathlib import Path

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
from trainer.stored_model import generating_model, model_of

_GAIN_STD = _BIAS_STD = 0.1
_MEMORY = Path("/proc/meminfo")
_COPIES = 2  # of the weights: the reference's and, at most, as many of the fast path


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

    What training starts at zero would hide errors.

    Raises:
        torch.OutOfMemoryError: There is no room for it.
    """
    shape = shape_of(config)
    is_full = config.model.head_vocabulary == "full"
    rows = None if is_full else torch.arange(head_rows(config, shape), device="meta")
    model = generating_model(config, shape.hidden_size, shape.vocab_size, rows)
    _require_room(sum(parameter.nbytes for parameter in model.parameters()), device)
    model = model.to_empty(device=device)
    fill(model, seed)
    model.set_statistics(torch.zeros_like(model.hidden_mean), torch.ones_like(model.hidden_mean))
    if model.token_ids is not None:
        model.token_ids.copy_(torch.arange(len(model.token_ids)))
    return _generator(config, model)


def _require_room(num_bytes: int, device: torch.device) -> None:
    """Where a process takes more than a computer has, Linux ends it, or another, without a word."""
    try:
        lines = _MEMORY.read_text().splitlines() if device.type == "cpu" else []
    except OSError:
        return  # no Linux
    told = dict(line.split(":") for line in lines)
    available = 1024 * int(told.get("MemAvailable", "-1 kB").split()[0])
    if 0 <= available < _COPIES * num_bytes:
        raise torch.OutOfMemoryError(f"out of memory: {_COPIES * num_bytes / 1e9:.0f} GB are needed, "
                                     f"{available / 1e9:.0f} GB are free")


def generator_of(config: TrainConfig, weights: dict[str, Tensor]) -> Generator:
    """A model with such weights and buffers, where they are."""
    shape = shape_of(config)
    return _generator(config, model_of(config, shape.hidden_size, shape.vocab_size, weights))


def _generator(config: TrainConfig, model: LatentDiffusionLM) -> Generator:
    rows = model.token_decoder.head.out_features
    return Generator(config, model.requires_grad_(False).eval(), None, rows, end_of_text_id=0)


def fill(model: nn.Module, seed: int) -> None:
    """Give every parameter random numbers that depend on the seed, its name and its shape."""
    for name, parameter in model.named_parameters():
        _fill(name, parameter.detach(), keyed_generator(parameter.device, "bench", seed, name))


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
