"""What a run folder has to show on W&B, and how far it is settled. Neither torch nor W&B's SDK."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from trainer.config import TrainConfig
from trainer.contract import Document, ExitCode, Name, attempt_file, evaluation_file
from trainer.kept_rows import Row, RowReader
from trainer.learning import judge
from trainer.run_folder import AttemptFiles, RunFolder, RunOutcome
from trainer.store import NotFoundError

# After these, nothing but a person starts training again.
_FINAL = (ExitCode.FINISHED, ExitCode.BROKEN, ExitCode.BAD_CONFIG)


def settled_before(attempts: Sequence[AttemptFiles], outcome: RunOutcome | None) -> float:
    """The step below which rows will not change any more; infinite once training has ended (pure).

    Rows at the newest checkpoint itself are not settled: the end of a run may add scores there.

    Args:
        attempts: Of one run, in order.
        outcome: Of the run; it may be from before a person resumed it.
    """
    training = [files for files in attempts if files.attempt.document is Document.TRAIN]
    if not training:
        return 0
    newest = training[-1]
    if attempts[-1] is not newest or (newest.end and newest.end.exit_code in _FINAL):
        return math.inf
    durable = max((files.heartbeat.durable_step for files in training if files.heartbeat), default=0)
    is_over = outcome is not None and outcome.at > newest.attempt.billed_from
    return durable + 1 if is_over else durable


class Texts(NamedTuple):
    """Held-out texts, each with what the model made of it, and texts from noise; both may be empty."""

    reconstructions: Sequence[Sequence[str]] = ()
    samples: Sequence[str] = ()


class Showing:
    """One run folder, read for W&B.

    Args:
        folder: The run.
        config: As the node was told; None: as the recipe in the folder says.
    """

    def __init__(self, folder: RunFolder, config: TrainConfig | None = None) -> None:
        self._folder, self._config, self._reader = folder, config, RowReader(folder)

    def settled_rows(self, first_step: int) -> dict[int, Row]:
        """Rows by step, rising, from `first_step` on, as far as they will not change. Raises StoreError."""
        end = settled_before(self._folder.attempts(), self._folder.find(Name.OUTCOME, RunOutcome))
        # After the look at the attempts: what is durable there has its rows in the store.
        return {step: row for step, row in self._reader.rows().items() if first_step <= step < end}

    def texts(self, step: int) -> Texts:
        """Texts of the evaluation at a step, of the attempt that scored it last."""
        for files in reversed(self._folder.attempts()):
            try:
                scored = self._folder.read_json(attempt_file(files.attempt.number, evaluation_file(step)))
            except NotFoundError:
                continue
            return Texts(scored["reconstructions"], scored.get("samples", []))
        return Texts()

    def config(self) -> dict[str, Any]:
        """What W&B lists as the run's config: train config, recipe, commit, and where it ran last."""
        try:
            recipe = self._folder.read_json(Name.RECIPE)
        except NotFoundError:
            recipe = {}
        shas = [event.detail.get("git_sha") for event in self._folder.events()]
        attempts = self._folder.attempts()
        last = attempts[-1].attempt if attempts else None
        return {"train": self._config.model_dump(mode="json") if self._config else recipe.get("train"),
                "recipe": recipe.get("name"), "run_folder": self._folder.url,
                "git_sha": next((sha for sha in reversed(shas) if sha), None),
                "offer": last and last.offer,
                "price_usd_per_hour": last and float(last.price_usd_per_hour)}

    def summary(self) -> dict[str, float | str]:
        """What stands beside the rows: outcome, dollars over all documents, scores of the benchmark."""
        found: dict[str, float | str] = {}
        beats = [files.heartbeat for files in self._folder.attempts() if files.heartbeat]
        if beats:
            found["total_usd"] = float(beats[-1].spent_usd)
        if outcome := self._folder.find(Name.OUTCOME, RunOutcome):
            found["outcome"] = f"{outcome.outcome}: {outcome.reason}"
        bench = self._bench()
        found |= {f"bench/{name}": value for name, value in bench.get("scores", {}).items()}
        if "throughput" in bench:
            found |= {f"bench/{name}": bench["throughput"][name] for name in ("tokens_per_s", "device")}
        return found

    def verdict(self) -> dict[str, str]:
        """Whether the run learns, and why; empty where the record's config is of another version."""
        try:
            config = self._config or TrainConfig.model_validate(self._folder.read_json(Name.RECIPE)["train"])
        except ValidationError:
            return {}
        found = judge(self._reader.rows().values(), config)
        return {"verdict": str(found.state), "verdict_reasons": "\n".join(map(str, found.reasons))}

    def samples(self) -> list[str]:
        """Texts that the benchmark generated, unselected; none before it."""
        return list(self._bench().get("samples", []))

    def _bench(self) -> Mapping[str, Any]:
        try:
            return self._folder.read_json(Name.BENCH)  # type: ignore[no-any-return]
        except NotFoundError:
            return {}
