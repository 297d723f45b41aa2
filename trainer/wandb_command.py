"""`ldlm wandb ...`: send a run to W&B from its record, and make the workspace that shows it. No torch."""

import os
import shlex
import socket
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trainer.command import carry_out
from trainer.config import WandbConfig
from trainer.contract import Env, LdlmError, Name, attempt_file
from trainer.deliveries import Channel, deliver
from trainer.news import News, starts
from trainer.run_folder import RunFolder
from trainer.store import NotFoundError, open_store
from trainer.wandb_node import QUIET
from trainer.wandb_options import read_wandb_options

# Longer than a node is silent between two heartbeats (guess).
_FRESH = timedelta(minutes=5)


def sync(folder: RunFolder, config: WandbConfig, out: Path | None) -> str:
    """Send the rows that W&B does not have, and alerts that nobody was sent. May be repeated at any time.

    Args:
        folder: The run.
        config: Where to.
        out: Write an offline run there instead of sending it.

    Returns:
        What was done, in words.

    Raises:
        LdlmError: There is no key, its node sends it already, or W&B cannot be reached; `out` holds an
            offline run of it, which would be sent again.
        StoreError: The record cannot be read.
    """
    from trainer.wandb_rows import Showing
    from trainer.wandb_view import View

    if out is None:
        require_key()
        require_nobody_sends(folder, datetime.now(UTC))
    else:
        require_no_offline_run(out, folder.run_id)
    with tempfile.TemporaryDirectory(prefix="ldlm-wandb-") as scratch:
        view = View.open(Showing(folder), folder.run_id, config, out or Path(scratch),
                         mode="offline" if out else "online")
        first = view.first_step
        num_rows, num_alerts = view.send(), _send_alerts(folder, view.alert)
        view.finish()
    alerts = f"{'wrote' if out else 'sent'} {num_alerts} alerts; " if num_alerts else ""
    if out:
        written = shlex.quote(str(view.folder))
        return f"{alerts}wrote {num_rows} rows; on a machine with a network: wandb sync {written}"
    if not num_rows:
        return f"{alerts}nothing new: W&B has all rows that are settled ({view.url})"
    return f"{alerts}sent {num_rows} rows, from step {first} on: {view.url}"


def _send_alerts(folder: RunFolder, alert: Callable[[News], None]) -> int:
    """What has happened since the last start and W&B was not told. Returns how many alerts that were."""
    sent: list[News] = []

    def send(news: News) -> None:
        alert(news)
        sent.append(news)

    deliver(folder, Channel.WANDB, send, start=starts(folder.events()), by=socket.gethostname())
    return len(sent)


def require_key() -> None:
    """Raise LdlmError without a key: the SDK would ask for it, and wait."""
    if not os.environ.get(Env.WANDB_KEY):
        raise LdlmError("there is no key for W&B", place=Env.WANDB_KEY,
                        fix=f"export {Env.WANDB_KEY}=... (https://wandb.ai/authorize shows it)")


def require_no_offline_run(out: Path, run_id: str) -> None:
    """Raise LdlmError where a folder holds an offline run of this run: W&B would show the rows of both."""
    for found in sorted((out / "wandb").glob("offline-run-*")):
        if found.name.split("-", 3)[-1] == run_id:  # offline-run-TIME-ID
            fix = (f"wandb sync {shlex.quote(str(found))}, and for what came later `ldlm wandb sync "
                   f"{run_id}`; or remove it, if it was not sent")
            raise LdlmError("it is an offline run of this run, and W&B would show the rows of both",
                            place=str(found), fix=fix)


def require_nobody_sends(folder: RunFolder, now: datetime) -> None:
    """Raise LdlmError while a node shows this run: two senders would write the same lines of history."""
    for files in folder.attempts()[-1:]:
        try:
            url = folder.read_json(attempt_file(files.attempt.number, Name.WANDB))["url"]
        except NotFoundError:
            continue
        if files.end is None and files.heartbeat and now - files.heartbeat.at < _FRESH:
            raise LdlmError("its node sends this run while it trains", place=url,
                            fix="look there, or wait until the attempt has ended: `ldlm status RUN`")


def recorded_config(folder: RunFolder) -> WandbConfig:
    """What the recipe of a run says of W&B; a run from before that was a setting has the defaults.

    Raises:
        LdlmError: There is no such run.
    """
    try:
        train = folder.read_json(Name.RECIPE)["train"]
    except NotFoundError as error:
        raise LdlmError(f"no run {folder.run_id!r}", place=folder.store.url,
                        fix="`ldlm status` lists the runs") from error
    return WandbConfig.model_validate(train.get("wandb", {}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for. Returns the exit code."""
    options = read_wandb_options(arguments)
    os.environ.update(QUIET)
    return carry_out(lambda: _answer(options),
                     interrupted="interrupted: the same command goes on from there")


def _answer(options: Namespace) -> str:
    folder = RunFolder(open_store(options.store), options.run)
    config = recorded_config(folder)
    if options.command == "sync":
        return sync(folder, config, options.out)
    from trainer.wandb_panels import save_workspace

    require_key()
    return save_workspace(config)


if __name__ == "__main__":
    sys.exit(main())
