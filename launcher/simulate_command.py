"""`ldlm simulate`: reads files, replays, shows."""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import console, simulate_screen
from launcher.errors import UsageError
from launcher.policy import Policy, Setting
from launcher.policy_ours import POLICIES
from launcher.price_history import priced
from launcher.simulate import CLAIRVOYANT, Saves, Score, score_all
from launcher.traces import Trace, one_by_one, read_traces, stack, together
from launcher.trainer_commands import run_in_trainer


@dataclass(frozen=True)
class Simulation:
    """What is asked for.

    Attributes:
        setting: Its prices hold where no history is given.
        policy: A name, several with commas, or `all`.
        prices: History of prices, of which one machine type in one region is used.
        is_together: Windows of one start are places that are open at once.
        saves: Intervals of saving to compare; none: nothing that was done is lost.
        plot: Where the picture goes.
    """

    traces: Path
    setting: Setting
    policy: str
    prices: Path | None
    machine_type: str | None
    region: str | None
    is_together: bool
    saves: tuple[Saves, ...]
    plot: Path | None


def run_simulate(asked: Simulation, *, as_json: bool) -> None:
    """Replay, and print one row per policy and setting.

    Raises:
        UsageError: A file cannot be read, a name is not known, or no window is long enough.
    """
    policies = chosen(asked.policy)
    traces, notes = read_traces(asked.traces)
    scores: list[Score] = []
    for setting, part in priced(asked.setting, traces, asked.prices, asked.machine_type, asked.region):
        scores += _scored(policies, setting, part, asked, notes)
    if asked.policy != "all" and CLAIRVOYANT not in asked.policy:
        scores = [score for score in scores if score.policy != CLAIRVOYANT]
    rows = [score.to_json() for score in scores]
    if asked.plot:
        _plot(rows, asked.plot)
    if as_json:
        for note in notes:
            console.talk(note)
        console.answer_json(rows)
    else:
        simulate_screen.show_scores(scores, notes)


def chosen(names: str) -> list[Policy]:
    """The policies of an option. Raises UsageError for a name that is none."""
    known = {policy.name: policy for policy in POLICIES}
    if names == "all":
        return list(known.values())
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known and name != CLAIRVOYANT:
            raise UsageError(f"no policy is called {name!r}", place="--policy",
                             fix=f"all, or some of: {', '.join([*known, CLAIRVOYANT])}")
    return [known[name] for name in wanted if name in known]


def read_saves(minutes: str | None, save_s: float) -> tuple[Saves, ...]:
    """Intervals of an option such as `5,15,60`. Raises UsageError for what is no number of minutes."""
    try:
        hours = [float(text) / 60 for text in minutes.split(",")] if minutes else []
        found = tuple(Saves(every_h, save_s / 3600) for every_h in hours)
    except ValueError:
        found = (Saves(math.nan, 0),)
    if not all(math.isfinite(saves.every_h + saves.stall_h) and saves.every_h > 0 and saves.stall_h >= 0
               for saves in found):
        raise UsageError(f"{minutes!r} and {save_s:g} s are no intervals of saving", place="--checkpoint-min",
                         fix="minutes above 0 with commas: 5,15,60")
    return found


def _scored(policies: Sequence[Policy], setting: Setting, traces: Sequence[Trace], asked: Simulation,
            notes: list[str]) -> list[Score]:
    groups = together(traces) if asked.is_together else one_by_one(traces)
    windows, num_short = stack(groups, setting)
    if not windows:
        raise UsageError(f"no window is {setting.deadline_h:g} h long", place=str(asked.traces),
                         fix="a shorter deadline, or longer windows")
    if num_short:
        notes.append(f"{num_short} windows are shorter than {setting.deadline_h:g} h and left out")
    return score_all(policies, setting, windows, adds_one_place=asked.is_together, saves=asked.saves)


def _plot(rows: list[dict[str, object]], path: Path) -> None:
    """By the trainer's environment, which has what draws."""
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores.json"
        scores.write_text(json.dumps(rows))
        if run_in_trainer("trainer.policy_plot", [str(scores), str(path.absolute())]):
            raise UsageError("the picture could not be drawn", place="--plot",
                             fix="see the lines above; make evaluation-tools installs what draws")
