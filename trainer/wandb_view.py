"""A run on W&B, fed from its record. No torch.

One W&B run over all attempts, with our run id. Why it holds every row once, although a resumed run trains
steps again, W&B's history only grows, and whoever sends may be killed at any moment:

- A row is sent when it is settled: its step lies before the newest durable checkpoint, so no attempt will
  train it again. What is left follows when training has ended. W&B is behind by up to one checkpoint.
- Rows reach the store before their checkpoint counts, so a kill loses none that would not be trained again.
- `_step`, W&B's own count, is the training step, and all that was logged at a step is one row. Whoever
  opens the run hears from W&B how far its history goes, and goes on behind that. So nobody has to remember
  what was sent: not the next attempt, not `ldlm wandb sync`, which may be typed any number of times.

A person who resumes a run that had ended for good trains steps again that were sent: they keep their rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import wandb
from wandb import AlertLevel

from trainer.config import WandbConfig
from trainer.contract import LdlmError
from trainer.deliveries import NotSentError
from trainer.kept_rows import Row
from trainer.news import Kind, News
from trainer.wandb_rows import Showing, Texts

STEP = "train/step"
_DENSITY = "time_density/"
_INIT_TIMEOUT_S = 60
_TITLE = 63  # characters of an alert's title: W&B takes fewer than 64
_NO_WAIT_S = 0.001  # between alerts of one title, of which each is told once anyhow; 0 means a minute
_LEVELS = {Kind.RECOVERED: AlertLevel.INFO, Kind.FINISHED: AlertLevel.INFO, Kind.FAILED: AlertLevel.ERROR,
           Kind.NOT_LEARNING: AlertLevel.ERROR, Kind.NO_CAPACITY: AlertLevel.ERROR}


class ViewError(LdlmError):
    """W&B cannot be reached, or refuses. The record has everything, so nothing is lost."""


class View:
    """An open W&B run. Whatever was sent before it was opened is not sent again.

    Attributes:
        url: Where it is seen; None offline.
        folder: Of the SDK's files.
        first_step: The first that W&B does not have yet.
    """

    def __init__(self, run: Any, showing: Showing) -> None:
        self._run, self._showing = run, showing
        self.url: str | None = run.url
        self.folder = Path(run.settings.sync_dir)
        self.first_step: int = run.starting_step

    @classmethod
    def open(cls, showing: Showing, run_id: str, config: WandbConfig, folder: Path,
             mode: Literal["online", "offline"] = "online") -> Self:
        """Open the W&B run of a run, or go on with it.

        Args:
            showing: What is shown.
            run_id: Ours and W&B's.
            config: Project and entity.
            folder: For the SDK's own files. Offline they are what `wandb sync` reads.
            mode: offline: write to `folder` and send nothing.

        Raises:
            ViewError: It cannot be opened.
            StoreError: The record cannot be read.
        """
        about = showing.config()
        # All explicit, so that what the user's machine has in WANDB_* cannot move the run elsewhere.
        settings = wandb.Settings(
            console="off", silent=True, git_commit=_commit(about["git_sha"]), init_timeout=_INIT_TIMEOUT_S,
            disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True,
            x_disable_machine_info=True, x_save_requirements=False)
        with _as_view_error(), _undone_on_error():
            run = wandb.init(project=config.project, entity=config.entity, id=run_id, name=run_id,
                             config=about, dir=str(folder), mode=mode, settings=settings,
                             resume="allow" if mode == "online" else None)
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
        return cls(run, showing)

    def send(self) -> int:
        """Hand over what is settled and new, in order of steps. Returns the number of rows.

        The SDK sends in the background, and keeps on the disk what a slow network holds up.

        Raises:
            ViewError: W&B's SDK has failed.
            StoreError: The record cannot be read.
        """
        rows = self._showing.settled_rows(self.first_step)
        for step, row in rows.items():
            texts = self._showing.texts(step) if any(map(_is_score, row)) else Texts()
            with _as_view_error():
                self._run.log(history_row(row, texts), step=step)
            self.first_step = step + 1
        if rows:
            verdict = self._showing.verdict()
            with _as_view_error():
                self._run.summary.update(verdict)
        return len(rows)

    def alert(self, news: News) -> None:
        """Tell of something by e-mail or chat, as the user's settings at W&B say. Raises NotSentError.

        Offline it is kept in the SDK's files, and sent with them.
        """
        title = f"{news.run_id}: {news.name.replace('-', ' ')}"
        try:
            self._run.alert(title[:_TITLE], f"{news.sentence} ({news.dollars}, step {news.step})",
                            level=_LEVELS.get(news.kind, AlertLevel.WARN), wait_duration=_NO_WAIT_S)
        except Exception as error:  # the SDK raises its own errors
            raise NotSentError(f"W&B's SDK takes no alert: {type(error).__name__}: {error}") from error

    def finish(self, exit_code: int = 0) -> None:
        """Add what belongs to the end, and return when W&B has everything. Raises ViewError, StoreError."""
        summary: dict[str, Any] = dict(self._showing.summary())
        samples = self._showing.samples()
        if samples:
            summary["samples"] = _samples_table(samples)
        with _as_view_error():
            self._run.summary.update(summary)
            self._run.finish(exit_code=exit_code)


def history_row(row: Row, texts: Texts) -> dict[str, Any]:
    """One row of the record as W&B's SDK takes it.

    Args:
        row: Metrics by name, with `step` and `time`.
        texts: Of the evaluation at its step.
    """
    found: dict[str, Any] = {name: value for name, value in row.items()
                             if name not in ("step", "time") and not name.startswith(_DENSITY)}
    found |= {STEP: int(row["step"]), "_timestamp": row["time"]}
    density = [row[name] for name in sorted(row) if name.startswith(_DENSITY)]
    if density:
        edges = [index / len(density) for index in range(len(density) + 1)]
        found["time_density"] = wandb.Histogram(np_histogram=(density, edges))
    if texts.reconstructions:
        found["eval/reconstructions"] = wandb.Table(columns=["text", "model"],
                                                    data=[list(pair) for pair in texts.reconstructions])
    if texts.samples:
        found["eval/samples"] = _samples_table(texts.samples)
    return found


def _samples_table(samples: Sequence[str]) -> wandb.Table:
    return wandb.Table(columns=["text"], data=[[text] for text in samples])


def _commit(git_sha: str | None) -> str | None:
    """What W&B links to: without the word for changes that no commit has."""
    return git_sha.removesuffix("-dirty") if git_sha else None


def _is_score(name: str) -> bool:
    return name.startswith("eval/")


@contextmanager
def _undone_on_error() -> Iterator[None]:
    """After a failed start the SDK would call the run "in use" for as long as this process lives."""
    try:
        yield
    except Exception:
        wandb.teardown()
        raise


@contextmanager
def _as_view_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the SDK raises its own errors, and those of sockets, HTTP and its helpers
        text = (str(error).splitlines() or [""])[0]
        raise ViewError(f"W&B cannot be reached, or refuses: {type(error).__name__}: {text}", place="W&B",
                        fix="check WANDB_API_KEY, train.wandb and the network, then send what is missing: "
                            "`ldlm wandb sync RUN`") from error
