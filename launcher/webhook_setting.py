"""The address of the webhook that is told what happens to runs: a secret, in a file that only its user reads.

`Env.WEBHOOK` of the environment wins over it. It is never an argument of a command: lists of processes and
a shell's history show those.
"""

import getpass
import sys
from collections.abc import Mapping

from launcher import console
from launcher.errors import ConfigError, UsageError
from launcher.home import ldlm_home, write_atomically
from trainer.contract import Env

_NAME = "webhook"
_NONE = "none"  # typed to be told no more


def webhook_envs(environ: Mapping[str, str]) -> dict[str, str]:
    """What a node's environment gets for it; empty where there is no webhook.

    Args:
        environ: Of this process.

    Raises:
        ConfigError: The file cannot be read.
    """
    url = environ.get(Env.WEBHOOK) or _kept()
    return {str(Env.WEBHOOK): url} if url else {}


def keep_webhook() -> None:
    """Ask for the address without showing it, or read it from standard input, and keep it.

    Raises:
        UsageError: It cannot be used.
        OSError: It cannot be written.
    """
    from trainer.webhook import address_problem, host_of

    if sys.stdin.isatty():
        typed = getpass.getpass("Address of the webhook, which is not shown (none: no webhook): ").strip()
    else:
        typed = sys.stdin.readline().strip()
    path = ldlm_home() / _NAME
    if typed == _NONE:
        path.unlink(missing_ok=True)
        console.answer("no webhook is told of runs from now on")
        return
    if problem := address_problem(typed):
        raise UsageError(f"the address of a webhook cannot be used: {problem}", place="--webhook",
                         fix="copy it from Slack, Discord or your own server, and type it at: "
                             "ldlm init --webhook")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, typed + "\n", mode=0o600)
    console.answer(f"{host_of(typed)} is told of every run that is started or resumed from now on")
    console.answer("a message for a try: ldlm doctor --webhook")


def _kept() -> str | None:
    path = ldlm_home() / _NAME
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {type(error).__name__}", place=str(path),
                          fix="name it anew: ldlm init --webhook") from None
