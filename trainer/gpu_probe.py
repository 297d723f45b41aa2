"""Lets the installed torch compute on every GPU: `python -m trainer.gpu_probe`. One JSON line, exit code 0.

What it finds is in no list: a driver too old for torch's CUDA, a torch not compiled for the card, a card that
has fallen off the bus. In a process of its own: CUDA, once it has failed, stays so.
"""

import json

import torch

_SIDE = 64


def problem() -> str:
    """Why a GPU cannot compute, in the words of torch; empty if all can."""
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:
            return str(error).splitlines()[0]
        return "no CUDA device is available"
    for number in range(torch.cuda.device_count()):
        try:
            ones = torch.ones(_SIDE, _SIDE, device=f"cuda:{number}", dtype=torch.bfloat16)
            if float((ones @ ones).float().sum()) != _SIDE**3:
                return f"cuda:{number} computes wrong"
        except RuntimeError as error:
            return f"cuda:{number}: {str(error).splitlines()[0]}"
    return ""


if __name__ == "__main__":
    found = problem()
    print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "problem": found,
                      "built_for": torch.cuda.get_arch_list(), "num_gpus": torch.cuda.device_count()}))
