"""The picture of a bill: its figures are made here, and drawn where matplotlib is."""

import json
import tempfile
from pathlib import Path
from typing import Any

from launcher import console
from launcher.cost_screen import digits_of
from launcher.report_html import Page
from launcher.report_svg import category_words, spent_over_time, top_usd
from launcher.trainer_commands import run_in_trainer


def draw(page: Page, path: Path) -> None:
    """Write a PNG. What went wrong was said by who draws; the program then ends with its code.

    Raises:
        LdlmError: There is no trainer's environment.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(figures(page), file)
        file.flush()
        code = run_in_trainer("trainer.cost_plot", [file.name, str(path.absolute())])
    if code:
        raise SystemExit(code)


def figures(page: Page) -> dict[str, Any]:
    """What `trainer/cost_plot.py` reads. Pure."""
    report, digits = page.report, digits_of(page.report.spent_usd)
    spent = [(at.isoformat(), f"{usd:.6f}") for at, usd in spent_over_time(report, page.now)]
    return {"report": report.to_json(), "spent": spent, "now": page.now.isoformat(),
            "cap_usd": None if page.cap_usd is None else str(page.cap_usd),
            "top_usd": f"{top_usd(report, page.cap_usd):.6f}",
            "labels": category_words(report, digits), "total": console.dollars(report.spent_usd, digits)}
