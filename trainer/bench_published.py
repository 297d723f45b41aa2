"""What the published code reaches on one H200: the reference stands in for it, and must come close. No torch.

Source: the benchmark's specification, median of 20, float32 as published.
"""

from trainer.bench_cases import Case

_DEVICE = "H200"
_TOKENS_PER_S = {("seed-35b-a3b", 10, 1): 3040, ("seed-35b-a3b", 4, 1): 5882, ("seed-35b-a3b", 10, 64): 8258,
                 ("seed-27b", 10, 1): 824, ("seed-27b", 4, 1): 1559}


def published_tokens_per_s(case: Case, device: str) -> float | None:
    """Of the same case on the same card; None where nothing was measured."""
    if _DEVICE not in device or case.model.length != 64:
        return None
    return _TOKENS_PER_S.get((case.model.name, case.steps, case.batch))
