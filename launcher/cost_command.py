"""`ldlm cost`: the bill of one run, or of all, in the form that was asked for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from launcher import bills_screen, console, cost_screen, kept
from launcher.bills import Bills, is_over_before
from launcher.errors import LdlmError, UsageError
from launcher.history import newest_limits, recorded_recipe
from launcher.reconciling import show_sides, sides_of
from launcher.report import cost_report
from launcher.report_csv import as_csv
from launcher.report_html import Page, as_html
from launcher.report_png import draw
from launcher.run_record import RunRecord, RunView
from launcher.runs import open_default_store, view_all_runs, view_run
from launcher.screens import status_word
from trainer.run_folder import RunFolder
from trainer.store import open_store

_SOON_S = 1.0  # what takes longer shows how far it is


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        since: As typed.
        reconciles: Beside what others have on record.
        html, png: Files for a page and a picture of one run.
    """

    since: str | None = None
    as_json: bool = False
    as_csv: bool = False
    reconciles: bool = False
    html: Path | None = None
    png: Path | None = None


def run_cost(run_id: str | None, store: str | None, asked: Asked) -> None:
    """Show where money went.

    Args:
        run_id: None: of all runs of the store.
        store: URL of it, as typed.

    Raises:
        UsageError: What is asked for does not go together, or is no date.
        RunRecordError, StoreError: The run, or the store, cannot be read.
    """
    if asked.as_json and asked.as_csv:
        raise UsageError("--json and --csv are two forms of one answer", fix="give one of them")
    if run_id is None and (asked.html or asked.png):
        raise UsageError("--html and --png are about one run", fix="name it: ldlm cost RUN --html FILE")
    if asked.reconciles and (asked.as_csv or asked.since is not None or asked.html or asked.png):
        raise UsageError("--reconcile compares whole runs, on the screen or as --json",
                         fix="leave out --since, --csv, --html and --png")
    since = _moment(asked.since, datetime.now(UTC)) if asked.since is not None else None
    if run_id is None:
        _show_all(store, asked, since)
    else:
        _show_one(run_id, store, asked, since)


def _show_one(run_id: str, store: str | None, asked: Asked, since: datetime | None) -> None:
    view = view_run(run_id, store)
    if asked.reconciles:
        _reconcile([view], asked)
        return
    report = cost_report(view, since)
    page = Page(report, _cap_usd(view.record), datetime.now(UTC))
    if asked.html:
        _write(asked.html, as_html(page).encode())
    if asked.png:
        draw(page, asked.png)
    if asked.as_csv:
        console.answer_plain(as_csv([report]))
    elif asked.as_json:
        console.answer_json(report.to_json() | kept.kept_json(view.record))
    else:
        cost_screen.show_cost(report)
        kept.show_bill_goes_on(view)
        cost_screen.show_last(report, status_word(view))
    if files := [str(path) for path in (asked.html, asked.png) if path]:
        console.talk(f"wrote {' and '.join(files)}")


def _show_all(store: str | None, asked: Asked, since: datetime | None) -> None:
    opened = open_default_store(store)
    with console.progress_line() as line:
        views, problems = view_all_runs(
            opened, lambda folder: since is None or not is_over_before(folder, since), _progress(line))
    if asked.reconciles:
        _reconcile(views, asked)
        _tell_of(problems)
        return
    reports = [cost_report(view, since) for view in views]
    if since is not None:
        reports = [report for report in reports if report.attempts or report.spent_usd]
    found = Bills(reports, [str(problem) for problem in problems], since)
    if asked.as_csv:
        console.answer_plain(as_csv(found.reports))
    elif asked.as_json:
        console.answer_json(found.to_json())
    else:
        bills_screen.show_bills(found, opened.url)
    _tell_of(problems)


def _tell_of(problems: Sequence[LdlmError]) -> None:
    """Last, and with the exit code of one: a sum that lacks runs must not pass for whole."""
    for problem in problems:
        console.talk(f"not in it, since it cannot be read: {problem}", "note")
    if problems:
        raise SystemExit(problems[0].cli_exit_code)


def _reconcile(views: Sequence[RunView], asked: Asked) -> None:
    found = {view.record.run_id: sides_of(view) for view in views}
    if asked.as_json:
        console.answer_json([{"run_id": run_id, "records": [side.to_json() for side in sides]}
                             for run_id, sides in found.items()])
    else:
        show_sides([side for sides in found.values() for side in sides])


def _cap_usd(record: RunRecord) -> Decimal | None:
    """Of its last start; None where this version cannot read its recipe."""
    try:
        folder = RunFolder(open_store(record.store_address), record.run_id)
        return newest_limits(record, recorded_recipe(folder)).max_cost_usd
    except LdlmError:
        return None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", place=str(path),
                         fix="name a file in a folder that there is, and that is yours") from error


def _progress(line: console.ProgressLine) -> Callable[[int, int], None]:
    began = time.monotonic()

    def say(done: int, total: int) -> None:
        if time.monotonic() - began > _SOON_S:
            line.update(done, total, "runs read")

    return say


def _moment(typed: str, now: datetime) -> datetime:
    """A date, or a date and a time; UTC where it does not say. Raises UsageError."""
    try:
        found = datetime.fromisoformat(typed)
    except ValueError as error:
        raise UsageError(f"{typed!r} is no date", place="--since",
                         fix="write it as 2026-11-01, or 2026-11-01T18:00") from error
    moment = found if found.tzinfo else found.replace(tzinfo=UTC)
    if moment > now:
        raise UsageError(f"{typed} is yet to come", place="--since", fix="give a date that has passed")
    return moment.astimezone(UTC)
