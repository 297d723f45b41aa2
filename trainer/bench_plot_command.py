"""`python -m trainer.bench plot`: the picture of a benchmark that was carried out elsewhere, as on a node."""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from trainer import bench_plot, bench_train_plot
from trainer.bench_output import Found, require_places
from trainer.bench_result import Report, parsed_report
from trainer.bench_train_result import TrainReport
from trainer.command import carry_out
from trainer.contract import ConfigError, Name
from trainer.store import NotFoundError, open_store

_TRAINING = TrainReport.model_fields["kind"].default


def main(arguments: Sequence[str]) -> int:
    """Draw what the command line names. Returns the exit code."""
    parser = ArgumentParser(prog="python -m trainer.bench plot",
                            description="Draw what a benchmark of generation or of training has measured.")
    parser.add_argument("report", help="a file that --out has written, or the folder of a run with a "
                                       "benchmark: s3://BUCKET/ldlm/runs/RUN")
    parser.add_argument("picture", type=Path, help="PNG to write")
    options = parser.parse_args(arguments)
    return carry_out(lambda: drawn(options.report, options.picture), out=options.picture)


def drawn(report: str, picture: Path) -> str:
    """Draw a report into a PNG; says so.

    Raises:
        ConfigError: It is none, nothing was timed in it, or nothing can be drawn here.
        StoreError: The store of the run cannot be read.
    """
    bench_plot.require_plots(None)
    require_places({"picture": picture}, {"the report": Path(report)})
    text = _text(report)
    if _kind(text) == _TRAINING:
        trained = parsed_report(text, report, TrainReport)
        _require_times(trained.cases, report)
        bench_train_plot.plot(trained, picture)
    else:
        generated = parsed_report(text, report, Report)
        _require_times(generated.cases, report)
        bench_plot.plot(generated, picture)
    return f"wrote {picture}"


def _require_times(cases: Sequence[Found], place: str) -> None:
    if not any(result.fast for result in cases):
        raise ConfigError("no case in it was timed: there is nothing to draw", place=place,
                          fix="name another benchmark's file or run")


def _text(report: str) -> bytes:
    path = Path(report)
    if path.is_file():
        return path.read_bytes()
    if "://" not in report and not path.is_dir():
        raise ConfigError("cannot be read: there is no such file or folder", place=report,
                          fix="name a file that --out has written, or the folder of a run")
    try:
        return open_store(report).get(Name.BENCH_REPORT)
    except NotFoundError as error:
        raise ConfigError(f"holds no {Name.BENCH_REPORT}: no benchmark of this run has ended", place=report,
                          fix="`ldlm bench RUN`, or name another run's folder") from error


def _kind(text: bytes) -> object:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found.get("kind") if isinstance(found, dict) else None
