"""`ldlm sweep`: shows the machines that nobody needs and gives them back, after asking."""

from functools import cache
from typing import TYPE_CHECKING

from launcher import console
from launcher.carry_out import ask
from launcher.engine import EnginePhase
from launcher.engines import sky_engine, start_server
from launcher.errors import EngineError
from launcher.runs import open_default_store
from launcher.sweep import Machines, RentedMachine, Renter, give_back, machines_json, orphans

if TYPE_CHECKING:
    from launcher.sky_engine import SkyEngine


def run_sweep(*, yes: bool, as_json: bool) -> None:
    """Look, show, ask, give back. Where Vast does not answer, this is done for the clusters, then said.

    Raises:
        EngineError: SkyPilot's API server or Vast cannot be asked, or a machine could not be given back.
        Refused: Nobody agrees.
    """
    start_server(console.talk)
    engine = sky_engine(open_default_store(None), console.talk)

    @cache
    def phase_of(run_id: str) -> EnginePhase:
        return engine.ask(run_id).phase

    at_vast, silence = _at_vast(engine)
    is_vast_known = silence is None and at_vast.not_seen_end is None
    everything = at_vast.machines + engine.clusters().machines
    live_jobs = engine.live_jobs([machine.job for machine in everything if machine.job is not None])
    found = orphans(everything, phase_of, live_jobs)
    if lost := [machine.instance_id for machine in found if machine.kind == "cluster"]:
        still = {machine.instance_id: machine for machine in engine.clusters(lost).machines}
        found = [still.get(machine.instance_id, machine) for machine in found
                 if machine.instance_id in still or machine.kind == "instance"]
    if as_json:
        console.answer_json(machines_json(found))
    else:
        _show(found, sum(machine.is_ours for machine in everything) - len(found),
              "machine" if is_vast_known else "cluster")
        _tell_of_volumes([one for one in at_vast.machines if one.kind == "volume"])
        _ask_and_give_back(engine, found, yes=yes)
    if at_vast.not_seen_end == 0:
        console.talk("Vast was not asked: SkyPilot's API server has no key of it, and nothing that it rented "
                     "there is left", "note")
    if silence:
        raise EngineError(f"{silence.problem}: of its machines nothing is known", place=silence.place,
                          fix=silence.fix)


def _at_vast(engine: "SkyEngine") -> tuple[Machines, EngineError | None]:
    """Machines there, or why there is no knowing where there may be some."""
    try:
        found = engine.machines()
    except EngineError as error:
        return Machines(machines=()), error
    if not found.not_seen_end:
        return found, None
    return found, EngineError(
        f"Vast could not be asked: SkyPilot's API server, which has rented {_count(found.not_seen_end)} "
        "there that it has not seen end, has no key of it", place="~/.config/vastai/vast_api_key",
        fix="write the account's API key into this file on the server's machine and repeat this, or look at "
            "https://cloud.vast.ai/instances")


def _ask_and_give_back(engine: Renter, found: list[RentedMachine], *, yes: bool) -> None:
    if remembered := [machine for machine in found if machine.is_remembered]:
        ask(f"Give back {_count(len(remembered))}?", yes)
        _give_back(engine, remembered)
    if strangers := [machine for machine in found if not machine.is_remembered]:
        console.talk(f"{_count(len(strangers))} with a name of ours, not rented through this API server: "
                     "a run of another server may be on it", "note")
        if console.can_ask():
            ask(f"Give back {', '.join(machine.instance_id for machine in strangers)} too?", yes=False)
            _give_back(engine, strangers)


def _give_back(engine: Renter, found: list[RentedMachine]) -> None:
    problems = give_back(engine, found)
    for problem in problems:
        console.talk(problem, "note")
    if problems:
        raise EngineError(f"{len(problems)} of {_count(len(found))} could not be given back",
                          fix="end them where they are: they are billed until then; those of Vast at "
                              "https://cloud.vast.ai/instances, a cluster by .venv/bin/sky down NAME")
    console.answer(f"gave back {_count(len(found))}, ${_a_day(found)} a day")


def _show(found: list[RentedMachine], num_needed: int, what: str) -> None:
    if not found:
        needed = f"; {_count(num_needed)} {'is' if num_needed == 1 else 'are'} in use" if num_needed else ""
        console.answer(f"no {what} is without a run{needed}")
        return
    console.answer_table(["cloud", "machine", "name", "run", "status", "since (UTC)", "a day"], [
        [machine.cloud, machine.instance_id, machine.label or "-", machine.run_id or "-", machine.status,
         f"{machine.since:%m-%d %H:%M}",
         "?" if machine.usd_per_hour is None else console.dollars(machine.usd_per_day, 2)]
        for machine in found], right=[6], spare=[2, 4])


def _tell_of_volumes(volumes: list[RentedMachine]) -> None:
    """They are billed as well; ldlm makes none, so it ends none."""
    for one in volumes:
        is_priced, name = one.usd_per_hour is not None, one.label or "without a name"
        price = f"{console.dollars(one.usd_per_day, 2)} a day" if is_priced else "price not known"
        console.talk(f"volume {one.instance_id} at Vast ({name}), {price}, is not of ldlm; if nobody needs "
                     f"it: .venv/bin/vastai delete volume {one.instance_id.removeprefix('V.')}", "note")


def _count(number: int) -> str:
    return f"{number} machine{'s' * (number != 1)}"


def _a_day(machines: list[RentedMachine]) -> str:
    return f"{sum(machine.usd_per_day for machine in machines):.2f}"
