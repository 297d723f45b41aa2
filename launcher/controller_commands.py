"""`ldlm controller up` and `down`: looks, shows, asks, does."""

import base64
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from launcher import console
from launcher.carry_out import ask, end_interrupted
from launcher.controller import (
    FOLDER,
    Address,
    Host,
    check_host,
    dollars_an_hour,
    parse_address,
    what_up_does,
)
from launcher.controller_ssh import Connection
from launcher.controller_status import HOW, is_controller, look
from launcher.engine import has_credentials
from launcher.engines import check_server
from launcher.errors import EngineError, Refused, UsageError
from launcher.git_state import git_sha
from launcher.home import write_atomically
from launcher.recipe import checkout_folder
from launcher.server_health import without_password
from launcher.settings import (
    API_SERVER,
    Settings,
    api_server,
    read_settings,
    server_of_environment,
    settings_path,
    settings_text,
)
from launcher.sky_ready import RENTED


def run_up(ssh: str, usd_per_hour: str | None, clouds: Sequence[str], *, yes: bool, force: bool) -> None:
    """Make a machine the controller, or bring the one that is there up to this checkout.

    Raises:
        UsageError: What is typed cannot be used.
        EngineError: The machine cannot be reached, will not do, or something failed there.
        Refused: Nobody agrees.
    """
    address, settings = parse_address(ssh), read_settings()
    _refuse_another_in_environment(address.url)
    if settings.api_server not in (None, address.url):
        end = "end it: ldlm controller down; or " if is_controller(settings) else ""
        raise Refused(f"SkyPilot's API server is {settings.api_server}, and may have runs", place="--ssh",
                      fix=f"{end}leave it as it is: ldlm init --api-server none; then repeat this")
    if settings.api_server is None and not force and (alive := _alive_here()):
        raise Refused(f"SkyPilot's API server on this machine has runs: {', '.join(alive)}", place="--ssh",
                      fix="wait for them, or stop them: with a controller, nobody asks that server any more")
    price, chosen, commit = _price(usd_per_hour, settings, address), _clouds(clouds), _commit()
    connection = Connection(address)
    host = look(connection)
    check_host(host, address, force=force)
    files = _keys(chosen)
    console.answer(f"A controller at {address.typed}", "title")
    console.answer_facts(what_up_does(host, address, commit, chosen, list(files), Decimal(price)))
    if (git_sha() or "").endswith("-dirty"):
        console.answer_notes(["this checkout has changes that are in no commit: they stay here"])
    ask("Do this?", yes)
    try:
        answer = _set_up(connection, host, commit, chosen, files)
    except KeyboardInterrupt:
        left = "it goes on with what is there" if host.is_set_up else "nothing of it is left running there"
        end_interrupted(f"interrupted: {left}; the same command begins again")
    connection.forget_port()
    for name in answer["kept"]:
        console.talk(f"{name} there is another than here and not of ldlm, so it stays", "note")
    _save(replace(settings, api_server=address.url, controller_usd_per_hour=price))
    _check_through_tunnel(chosen)
    changed = "; ".join(answer["changed"])
    console.answer(f"changed: {changed}" if changed else "nothing had to be changed")
    for cloud in sorted(set(chosen) - set(answer["enabled"])):
        console.talk(f"SkyPilot there cannot rent at {cloud} yet: {address.ssh} "
                     f"{FOLDER}/.venv/bin/sky check {cloud}", "note")
    console.answer("runs that you launch from now on are recovered there, whatever becomes of this machine",
                   "title")


def _alive_here() -> list[str]:
    from launcher.sky_engine import alive_jobs

    try:
        return alive_jobs()
    except EngineError:  # no server runs here, so no run is in its hands
        return []


def _set_up(connection: Connection, host: Host, commit: str, clouds: Sequence[str],
            files: Mapping[str, str]) -> dict[str, Any]:
    is_there = host.controller is not None and host.controller.commit == commit
    new = f"{FOLDER}.new"
    if not is_there:
        console.talk("sending this checkout ...")
        try:
            connection.send(_archive, f"rm -rf {new} && mkdir {new} && tar -xf - -C {new}")
        except BaseException:
            connection.run(f'rm -rf "$HOME/{new}"')
            raise
    wish = {"commit": commit, "port": host.port, "service": host.services[0], "clouds": list(clouds),
            "files": files}
    program = f"exec {host.python} -m launcher.controller_host up"
    return connection.ask(f"cd {FOLDER if is_there else new} && {program}", json.dumps(wish), console.talk)


def _archive() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["git", "-C", str(checkout_folder()), "archive", "HEAD"], stdout=subprocess.PIPE)


def _commit() -> str:
    found = git_sha()
    if found is None:
        raise EngineError("is no git checkout, so nothing says what to send", place=str(checkout_folder()),
                          fix="clone ldlm with git, and type this there")
    return found.removesuffix("-dirty")


def _price(typed: str | None, settings: Settings, address: Address) -> str:
    """Dollars an hour, as written: typed, or of the same controller as it was."""
    if typed is None and settings.api_server == address.url and settings.controller_usd_per_hour:
        return settings.controller_usd_per_hour
    return dollars_an_hour(typed or "", "--usd-per-hour")


def _clouds(typed: Sequence[str]) -> list[str]:
    """Clouds whose keys go there: those that are named, else all that have keys here."""
    if unknown := [name for name in typed if name not in RENTED]:
        raise UsageError(f"{unknown[0]!r} is no cloud to rent at", place="--cloud",
                         fix=f"use one of {', '.join(RENTED)}")
    found = [name for name in RENTED if has_credentials(name) and (name in typed or not typed)]
    if missing := sorted(set(typed) - set(found)) or ([] if found else sorted(RENTED)):
        raise EngineError(f"no keys of {' or '.join(missing)} are here, and a controller has to rent",
                          place="--cloud", fix=f"ldlm doctor --infra {missing[-1]} says where they belong")
    return found


def _keys(clouds: Sequence[str]) -> dict[str, str]:
    """Contents of the files with which SkyPilot rents, by their names in a home."""
    from launcher.sky_server import files_to_rent_with

    return {name: base64.b64encode(path.read_bytes()).decode()
            for cloud in clouds for name, path in sorted(files_to_rent_with(cloud).items())}


def _check_through_tunnel(clouds: Sequence[str]) -> None:
    console.talk("asking its API server from here ...")
    check_server(clouds)


def _refuse_another_in_environment(url: str) -> None:
    """Refuse to do with one server what would be asked of another. Raises Refused."""
    named = server_of_environment()
    if named not in (None, url):
        raise Refused(f"{API_SERVER} names {without_password(named)}, and wins over the settings",
                      place="environment", fix=f"unset {API_SERVER}, then repeat this")


def run_down(*, yes: bool, force: bool) -> None:
    """End the controller and take its keys away.

    Raises:
        EngineError: A run is alive there, or whether one is cannot be told.
        Refused: Nobody agrees, or there is no controller.
    """
    settings = read_settings()
    if not is_controller(settings):
        named = api_server()
        where, fix = "on this machine", f"set one up: {HOW}"
        if named:
            where = f"{without_password(named)}, which ldlm has not set up"
            how = f"unset {API_SERVER}" if server_of_environment() else "ldlm init --api-server none"
            fix = f"end it where it runs; to ask it no more: {how}"
        raise Refused(f"there is no controller: SkyPilot's API server is {where}", fix=fix)
    address = parse_address(settings.api_server or "", str(settings_path()))
    _refuse_another_in_environment(address.url)
    connection = Connection(address)
    try:
        controller = look(connection).controller
    except EngineError as error:
        raise EngineError(error.problem, place=error.place, fix=f"{error.fix}; if that machine is no more: "
                          "ldlm init --api-server none") from error
    if controller and not force:
        _refuse_while_runs_live(address)
    console.answer(f"The controller at {address.typed}", "title")
    files = ", ".join(controller.files) if controller else ""
    console.answer_facts([
        ("ends", "its API server, and what starts it; new runs are supervised by this machine"),
        ("removes", f"keys: {files or 'none are there'}"),
        ("leaves", f"~/{FOLDER} and SkyPilot's records in ~/.sky, the secrets of submitted runs among them")])
    ask("End it?", yes)
    removed = connection.ask(f"cd {FOLDER} && exec .venv/bin/python -m launcher.controller_host down",
                             say=console.talk)["removed"] if controller else []
    _save(replace(settings, api_server=None, controller_usd_per_hour=None))
    connection.close()
    console.answer(f"ended; removed there: {', '.join(removed) or 'nothing'}")
    console.answer(f"the rest goes with: {address.ssh} rm -rf {FOLDER} .sky .ldlm")
    console.answer("the machine itself is billed until you give it back", "note")


def _refuse_while_runs_live(address: Address) -> None:
    from launcher.sky_engine import alive_jobs

    try:
        alive = alive_jobs()
    except EngineError as error:
        raise EngineError(
            f"whether it has runs cannot be told: {error.problem}", place=address.url,
            fix=f"start it: ldlm controller up --ssh {address.typed}; or add --force") from error
    if alive:
        raise EngineError(f"it has runs: {', '.join(alive)}", place=address.url,
                          fix=f"stop them first: ldlm stop {alive[0]}; with --force they run on, and nobody "
                              "recovers or ends them")


def _save(settings: Settings) -> None:
    path = settings_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, settings_text(settings), 0o600)
