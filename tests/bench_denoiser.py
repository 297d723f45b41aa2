"""The persistent kernel beside torch: `python -m tests.bench_denoiser [--width 2048|5120] [--steps 10]`.

Prints errors against float32, microseconds of a block (24 W^2 bytes of weights) and bytes per second, beside
the read rate of the same run; no judgement. Needs an H100 or H200 with torch for CUDA and triton.
"""

import argparse

import torch

from tests.persistent.host import PersistentDenoiser, why_not
from tests.persistent.problem import Problem, generated, in_bf16, random_problem, relative_error
from tests.persistent.shape import SHAPES, Shape
from tests.persistent.timing import graph_ms

_NUM_BLOCKS = 4  # more weights than the L2 cache holds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="The persistent denoiser kernel beside torch.")
    parser.add_argument("--width", type=int, choices=sorted(SHAPES), default=2048)
    parser.add_argument("--steps", type=int, choices=range(1, 1001), metavar="1..1000", default=10)
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(reason)
        raise SystemExit(1)
    _bench(SHAPES[options.width], options.steps)


def _bench(shape: Shape, num_steps: int) -> None:
    from trainer.read_rate import read_bytes_per_second

    read_rate = read_bytes_per_second()
    problem = random_problem(shape, _NUM_BLOCKS, num_steps, seed=0)
    wanted = generated(problem)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, read rate {read_rate / 1e12:.2f} TB/s")
    print(f"width {shape.width}, {_NUM_BLOCKS} blocks, {num_steps} steps, batch 1, 64 latents")
    print(f"{'':24} {'error':>8} {'us a block':>11} {'TB/s':>6} {'of the read rate':>17}")
    kernel = PersistentDenoiser(problem, shape)
    kernel_ms = graph_ms(kernel.launch)
    _print_row("persistent kernel", relative_error(kernel.latents, wanted), kernel_ms, problem, read_rate)
    in_torch = in_bf16(problem)
    error = relative_error(generated(in_torch), wanted)
    _print_row("torch bf16, CUDA graph", error, graph_ms(lambda: generated(in_torch)), problem, read_rate)


def _print_row(name: str, error: float, milliseconds: float, problem: Problem, read_rate: float) -> None:
    width, num_blocks = problem.noise_KW.shape[1], len(problem.blocks) * len(problem.times_SW)
    seconds_a_block = milliseconds / 1000 / num_blocks
    rate = 24 * width**2 / seconds_a_block
    print(f"{name:24} {error:8.5f} {seconds_a_block * 1e6:11.1f} {rate / 1e12:6.2f} {rate / read_rate:17.0%}")


if __name__ == "__main__":
    main()
