"""How latents get their scale."""

import os
import socket
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import tiny_config, tiny_model  # noqa: E402
from torch import distributed as dist  # noqa: E402
from torch import multiprocessing  # noqa: E402

from trainer.latent_scale import RunningScale  # noqa: E402


def _latents(std: float, seed: int = 0, num: int = 64) -> torch.Tensor:
    """Means differ from channel to channel, and are not part of the spread."""
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(num, 5, 4, generator=generator) + torch.arange(4.0)


def _trained(scale: RunningScale, std: float, steps: int) -> RunningScale:
    for step in range(steps):
        scale(_latents(std, seed=step))
        scale.end_step()
    return scale


def test_scale_is_the_spread_of_latents_about_their_channels_means() -> None:
    scale = _trained(RunningScale(4), 3.0, 1)
    assert scale.std.item() == pytest.approx(3.0, rel=0.05)
    z = _latents(3.0)
    assert torch.allclose(scale(z), z / scale.std)


def test_scale_follows_slowly_and_forgets_its_start_at_once() -> None:
    scale = _trained(RunningScale(4), 3.0, 200)
    assert scale.std.item() == pytest.approx(3.0, rel=0.01)
    before = scale.std.item()
    _trained(scale, 6.0, 1)
    # 1 % of the way in variance: sqrt(9 + 0.01 * 27)
    assert scale.std.item() == pytest.approx(before * (9.27 / 9) ** 0.5, rel=0.01)


def test_nothing_moves_in_evaluation_and_nothing_before_the_step_has_ended() -> None:
    scale = _trained(RunningScale(4), 3.0, 3)
    before = scale.std.clone()
    scale(_latents(50.0))
    assert torch.equal(scale.std, before)
    scale = _trained(RunningScale(4), 3.0, 3).eval()
    scale(_latents(50.0))
    scale.train()
    with torch.no_grad():
        scale(_latents(50.0))
    scale.end_step()
    assert torch.equal(scale.std, before)


def test_micro_batches_add_up_to_their_whole() -> None:
    whole, parts, z = RunningScale(4), RunningScale(4), _latents(2.0)
    whole(z)
    for part in z.split(16):
        parts(part)
    for scale in (whole, parts):
        scale.end_step()
    assert parts.std.item() == pytest.approx(whole.std.item(), rel=1e-6)


def test_gradient_sees_a_constant_scale() -> None:
    scale = _trained(RunningScale(4), 3.0, 2)
    z = _latents(3.0).requires_grad_()
    scale(z).sum().backward()
    assert torch.allclose(z.grad, torch.full_like(z, 1 / scale.std.item()))


def test_what_is_not_a_number_does_not_stick_to_the_scale() -> None:
    scale = _trained(RunningScale(4), 3.0, 2)
    before = scale.std.clone()
    assert scale(torch.full((2, 5, 4), float("nan"))).isnan().all()
    scale.end_step()
    assert torch.equal(scale.std, before)


def test_scale_travels_with_the_weights_to_the_bit_in_bfloat16_too() -> None:
    model = tiny_model(tiny_config({"latent_norm": "running_std"})).bfloat16()
    model.encoder(torch.randn(4, 8, 10))
    model.end_step()
    std = model.encoder.scale.std
    assert std.dtype == torch.float32 and std != 1
    other = tiny_model(tiny_config({"latent_norm": "running_std"})).bfloat16()
    other.load_state_dict(model.state_dict())
    z = model.eval().encoder(torch.ones(1, 8, 10))
    assert torch.equal(other.eval().encoder(torch.ones(1, 8, 10)), z)
    assert other.encoder.scale.num_steps == 1


def test_without_a_scale_latents_come_as_they_are() -> None:
    model = tiny_model(tiny_config({"latent_norm": "none"}))
    hidden = torch.randn(4, 8, 10)
    assert torch.equal(model.encoder(hidden), model.encoder.perceiver(hidden))
    model.end_step()


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    scale = RunningScale(4)
    for z in _latents(2.0).split(32)[rank].split(8):
        scale(z)
    scale.end_step()
    torch.save(scale.std, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_that_saw_different_texts_hold_the_same_scale(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    whole = RunningScale(4)
    whole(_latents(2.0))
    whole.end_step()
    assert torch.equal(one, other)
    assert one.item() == pytest.approx(whole.std.item(), rel=1e-6)
