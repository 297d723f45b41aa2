"""Command line of `python -m trainer.bench train`. No torch."""

import argparse
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

from trainer.bench_train_cases import Scope, TrainCase, profile_config
from trainer.contract import ConfigError
from trainer.measure_options import number
from trainer.profiles import PROFILES

# Of a step, unless more are asked for: the end of a step counts little beside as many, and a profile's
# 64 of Qwen3.6-27B take a minute.
_USUAL_MICRO_BATCHES = 8
_EXAMPLES = """examples:
  python -m trainer.bench train --preset qwen3.6-27b --profile kernels.json
  python -m trainer.bench train --preset seed-27b --trainables-only --ranks 8
  python -m trainer.bench train --preset qwen3.6-35b-a3b --encoder-only
  python -m torch.distributed.run --standalone --nproc-per-node 2 \\
     -m trainer.bench train --preset qwen3.6-35b-a3b --encoder-placement sharded
"""


def read_train_options(arguments: Sequence[str]) -> argparse.Namespace:
    """What was typed behind `train`. Ends the program with code 2 when it goes wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.bench train", formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False, epilog=_EXAMPLES,
        description="Time the trainer's own step at a profile's sizes, on one GPU or by torchrun's\n"
                    "ranks: frozen encoder and trained parts with random weights, no store, no\n"
                    "text, no checkpoints; beside it what the device can do at best, and where the\n"
                    "time goes.")
    _add_cases(parser)
    parser.add_argument("--steps", type=number(int, 1, 100_000), default=20, metavar="N",
                        help="timed steps of each case, after 2 to warm up (default 20)")
    parser.add_argument("--case-seconds", type=number(float, 0.01, 1e6), default=math.inf, metavar="S",
                        help="of timing each case: fewer steps where they take longer")
    parser.add_argument("--reference", action="store_true",
                        help="also the same work operation by operation: no kernels for linear attention, "
                             "norms or vocabulary loss, nothing compiled")
    parser.add_argument("--check-steps", type=number(int, 0, 10_000), default=3, metavar="N",
                        help="with --reference: first steps of both whose losses are compared (default 3)")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of weights and tokens")
    parser.add_argument("--profile", type=Path, metavar="FILE", dest="kernels",
                        help="JSON of every kernel of one more step by its total time")
    parser.add_argument("--git-sha", metavar="SHA", help="commit of this code, where it lies in no checkout")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of everything")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG: where a step goes, beside its floor")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier --out: exit code 1 where a "
                                                                     "case is slower than noise explains")
    options = parser.parse_args(arguments)
    if options.encoder_products == "fp8" and options.encoder_weights != "fp8":
        parser.error("--encoder-products fp8 wants --encoder-weights fp8")
    if options.encoder_micro_batch and options.scope != "joint":
        parser.error("--encoder-micro-batch is of the joint step: give --micro-batch")
    num_started = int(os.environ.get("WORLD_SIZE", "1")) if started_by_torchrun() else 1
    if num_started > int(os.environ.get("LOCAL_WORLD_SIZE", num_started)):
        parser.error("ranks of several nodes are not timed: plans take it for one node's speed")
    if options.ranks and num_started > 1:
        parser.error("--ranks imagines ranks, but torchrun has started real ones")
    if options.encoder_placement == "sharded" and num_started == 1:
        parser.error("--encoder-placement sharded wants ranks: python -m torch.distributed.run --standalone "
                     "--nproc-per-node N -m trainer.bench train ...")
    options.ranks, options.ranks_are_real = options.ranks or num_started, num_started > 1
    return options


def started_by_torchrun() -> bool:
    """This process is one of several ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _add_cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", action="append", required=True, choices=sorted(PROFILES), metavar="NAME",
                        help=f"profile, several times for several: {', '.join(PROFILES)}")
    parser.add_argument("--micro-batch", action="append", type=number(int, 1, 100_000), metavar="N",
                        help="sequences at a time, several times for several (default: the profile's)")
    parser.add_argument("--encoder-micro-batch", action="append", type=number(int, 1, 100_000), metavar="N",
                        help="sequences that the encoder reads at a time, a multiple of --micro-batch, "
                             "several times for several (default: one micro-batch)")
    parser.add_argument("--micro-batches", type=number(int, 1, 100_000), metavar="N",
                        help="of one optimizer step (default: as many as the profile's, at most "
                             f"{_USUAL_MICRO_BATCHES})")
    parser.add_argument("--length", type=number(int, 2, 1_000_000), metavar="N",
                        help="tokens of a sequence (default: the profile's)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--trainables-only", action="store_const", const="trainables", dest="scope",
                      default="joint", help="hidden states are simply there: no encoder")
    only.add_argument("--encoder-only", action="store_const", const="encoder", dest="scope",
                      help="the frozen encoder alone")
    parser.add_argument("--encoder-weights", choices=["bf16", "fp8", "nf4"], default="bf16",
                        help="how the encoder's matrices are held (default bf16)")
    parser.add_argument("--encoder-products", choices=["bf16", "fp8"], default="bf16",
                        help="what the encoder multiplies in; fp8 of weights in fp8 (default bf16)")
    parser.add_argument("--encoder-placement", choices=["gpu", "sharded"], default="gpu",
                        help="whole on every GPU, or split over those of torchrun (default gpu)")
    parser.add_argument("--zero-stage", type=int, choices=[1, 2], help="default: the profile's")
    parser.add_argument("--ranks", type=number(int, 1, 100_000), metavar="N",
                        help="as the first of so many: its share of the optimizer's state, no other rank and "
                             "no communication (default: those of torchrun, which are real; else 1)")
    parser.add_argument("--compile", action="store_true", dest="compiles",
                        help="have torch compile the trained blocks, as `train.compile: true` does")


def cases_of(options: argparse.Namespace) -> list[TrainCase]:
    """Every combination of profile and micro-batch, those of one profile together, each once.

    Raises:
        ConfigError: A profile cannot be trained, or an encoder reads no whole micro-batches.
    """
    scope: Scope = options.scope
    found: dict[TrainCase, None] = {}
    for name in options.preset:
        usual = profile_config(name)
        sizes = options.micro_batch or [usual.micro_batch_size]
        for micro_batch, at_once in itertools.product(sizes, options.encoder_micro_batch or [None]):
            own = max(1, usual.global_batch_size // micro_batch)
            case = TrainCase(
                profile=name, scope=scope, length=options.length or usual.data.sequence_length,
                micro_batch=micro_batch, weights=options.encoder_weights,
                products=options.encoder_products, num_ranks=options.ranks, compiles=options.compiles,
                ranks_are_real=options.ranks_are_real, placement=options.encoder_placement,
                num_micro_batches=options.micro_batches or min(own, _USUAL_MICRO_BATCHES),
                zero_stage=options.zero_stage or usual.zero_stage,
                encoder_micro_batch=None if at_once == micro_batch else at_once)
            _check_encoder(case)
            found[case] = None
    return list(found)


def _check_encoder(case: TrainCase) -> None:
    size, num, at_once = case.micro_batch, case.num_micro_batches, case.encoder_micro_batch
    if at_once and (at_once % size or at_once > num * size):
        raise ConfigError(f"of {num} micro-batches of {size} no encoder reads {at_once} sequences at a time",
                          place="--encoder-micro-batch",
                          fix=f"give a multiple of {size}, and --micro-batches {-(-at_once // size)} or more")
