"""`ldlm simulate`: reads files, replays, shows."""

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import console, simulate_screen
from launcher.errors import UsageError
from launcher.policy import Policy, Setting
from launcher.policy_ours import POLICIES
from launcher.price_history import LOWEST_USD_PER_HOUR, priced
from launcher.priced_offers import HIGHEST_USD_PER_HOUR
from launcher.recipe import HIGHEST_LIMIT
from launcher.simulate import CLAIRVOYANT, Saves, Score, score_all
from launcher.traces import one_by_one, read_traces, stack, together
from launcher.trainer_commands import run_in_trainer

_LEAST_WORK_H = 0.001
_LEAST_MINUTES = 0.1  # between saves; less is no interval but a mistake
_LONGEST_SAVE_S = 86_400
_USUAL_SPOT_USD, _USUAL_ON_DEMAND_USD = 0.97, 3.06  # of a V100 at AWS (list)


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
    if asked.plot:
        _check_can_plot()
    policies = chosen(asked.policy)
    traces, notes = read_traces(asked.traces)
    groups = together(traces) if asked.is_together else one_by_one(traces)
    scores: list[Score] = []
    num_short = 0
    for part in priced(asked.setting, groups, asked.prices, asked.machine_type, asked.region):
        windows, num_left_out = stack(part.groups, part.setting)
        num_short += num_left_out
        if windows:
            scores += [replace(score, periods=tuple(part.periods)) for score in score_all(
                policies, part.setting, windows, adds_one_place=asked.is_together, saves=asked.saves)]
    if not scores:
        raise UsageError(f"no window is {asked.setting.deadline_h:g} h long", place=str(asked.traces),
                         fix="a shorter deadline, or longer windows")
    if num_short:
        notes.append(f"{num_short} windows are shorter than {asked.setting.deadline_h:g} h and left out")
    if asked.policy != "all" and CLAIRVOYANT not in asked.policy:
        scores = [score for score in scores if score.policy != CLAIRVOYANT]
    rows = [score.to_json() for score in scores]
    if as_json:
        for note in notes:
            console.talk(note)
        console.answer_json(rows)
    else:
        simulate_screen.show_scores(scores, notes)
    if asked.plot:
        _plot(rows, asked.plot)


def chosen(names: str) -> list[Policy]:
    """The policies of an option. Raises UsageError for a name that is none."""
    known = {policy.name: policy for policy in POLICIES}
    if names == "all":
        return list(known.values())
    wanted = dict.fromkeys(name.strip() for name in names.split(","))
    for name in wanted:
        if name not in known and name != CLAIRVOYANT:
            raise UsageError(f"no policy is called {name!r}", place="--policy",
                             fix=f"all, or some of: {', '.join([*known, CLAIRVOYANT])}")
    return [known[name] for name in wanted if name in known]


def read_setting(work_h: str, deadline_h: str, overhead_h: str, spot_usd: str | None,
                 on_demand_usd: str | None) -> Setting:
    """What the options say. Raises UsageError for hours and prices that nothing takes or costs."""
    usd = (LOWEST_USD_PER_HOUR, HIGHEST_USD_PER_HOUR)
    return Setting(_number("--work-h", work_h, _LEAST_WORK_H, HIGHEST_LIMIT),
                   _number("--deadline-h", deadline_h, 0, HIGHEST_LIMIT),
                   _number("--overhead-h", overhead_h, 0, HIGHEST_LIMIT),
                   _USUAL_SPOT_USD if spot_usd is None else _number("--spot-usd", spot_usd, *usd),
                   _USUAL_ON_DEMAND_USD if on_demand_usd is None else _number(
                       "--on-demand-usd", on_demand_usd, *usd))


def _number(option: str, typed: str, least: float, most: float) -> float:
    with suppress(ValueError):
        if least <= (value := float(typed)) <= most:
            return value
    raise UsageError(f"{typed!r} is no number, or out of bounds", place=option,
                     fix=f"a number from {least} to {most:,}")


def read_saves(minutes: str | None, save_s: str | None) -> tuple[Saves, ...]:
    """Intervals of an option such as `5,15,60`, each once.

    Args:
        save_s: Seconds that a save stops training; None: 1.

    Raises:
        UsageError: No numbers of minutes or seconds, or seconds without minutes.
    """
    stall_s = 1.0 if save_s is None else _number("--save-s", save_s, 0, _LONGEST_SAVE_S)
    if minutes is None and save_s is not None:
        raise UsageError("nothing is saved without --checkpoint-min", place="--save-s",
                         fix="--checkpoint-min 5,15,60 besides, or leave it out")
    try:
        found = dict.fromkeys(float(text) for text in minutes.split(",")) if minutes is not None else {}
    except ValueError:
        found = {0.0: None}
    if not all(_LEAST_MINUTES <= every <= HIGHEST_LIMIT for every in found):
        raise UsageError(f"{minutes!r} are no intervals of saving", place="--checkpoint-min",
                         fix=f"minutes from {_LEAST_MINUTES} to {HIGHEST_LIMIT:,} with commas: 5,15,60")
    return tuple(Saves(every / 60, stall_s / 3600) for every in found)


def _check_can_plot() -> None:
    """Before the work, which takes its time. What is lacking is said by who would draw."""
    if code := run_in_trainer("trainer.policy_plot", []):
        raise SystemExit(code)


def _plot(rows: list[dict[str, object]], path: Path) -> None:
    """By the trainer's environment, which has what draws."""
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores.json"
        scores.write_text(json.dumps(rows))
        if run_in_trainer("trainer.policy_plot", [str(scores), str(path.absolute())]):
            raise UsageError("the picture could not be drawn", place="--plot", fix="see the lines above")
