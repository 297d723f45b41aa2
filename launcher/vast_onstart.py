"""What a machine of Vast does when it starts: let SkyPilot in, give itself back when nobody uses it. Pure.

The second part, a dead man's switch, needs neither SkyPilot nor this machine: where the server that would end
a rental has died, the rental ends all the same. Vast gives every machine a key that is good for itself alone
(`CONTAINER_API_KEY`), so that no key of the account has to be there. By it the machine also says, in its
label, that its node has found it to be the wrong one (`trainer/wrong_machine.py`): who rents for the run sees
that, and needs no key of the run's store.
"""

import json
import shlex

from trainer.contract import VAST_SWITCH, WRONG_MACHINE

IDLE_LIMIT_S = 1800  # without a program of ours; before the first one SkyPilot installs itself (guess)
_LOOK_EVERY_S = 5  # a node that has found its machine wrong waits for it
_MARK = " (wrong machine)"  # behind the name that SkyPilot has given it
_FILE = f"~/{VAST_SWITCH}"
# The key travels by standard input: a process list is no place for it. Where Vast does not let a machine
# destroy itself, stopping ends at least the bill of its GPUs.
_DEADMAN = """\
ask() {
    printf 'header = "Authorization: Bearer %s"\\n' "$CONTAINER_API_KEY" \\
        | curl -fsS -m 60 -K - "$@" URL/api/v0/instances/$CONTAINER_ID/
}
idle_s=0
while sleep LOOK_S; do
    if [ -e ~/NOTE ]; then
        ask -X PUT -H 'Content-Type: application/json' -d LABEL && rm ~/NOTE
    fi
    if pgrep -f -- '-m trainer[.]' > /dev/null; then idle_s=0; else idle_s=$((idle_s + LOOK_S)); fi
    [ $idle_s -lt LIMIT_S ] && continue
    ask -X DELETE || ask -X PUT -H 'Content-Type: application/json' -d '{"state": "stopped"}'
done
"""


def first_commands(ssh_public_key: str | None, url: str, label: str) -> str:
    """One line of shell, run as root when the machine starts.

    Args:
        ssh_public_key: Of SkyPilot.
        url: Of Vast's API, without a path.
        label: Its name at Vast, by which SkyPilot finds it.
    """
    commands = ["touch ~/.no_auto_tmux"]
    if ssh_public_key:
        commands += ["mkdir -p ~/.ssh", "chmod 700 ~/.ssh", 'echo "" >> ~/.ssh/authorized_keys',
                     f"echo {shlex.quote(ssh_public_key.strip())} >> ~/.ssh/authorized_keys",
                     "chmod 600 ~/.ssh/authorized_keys"]
    commands += [f"printf %s {shlex.quote(deadman(url, label))} > {_FILE}",
                 f"(setsid bash {_FILE} > {_FILE}.log 2>&1 < /dev/null &)"]
    return ";".join(commands)


def without_mark(label: str | None) -> str | None:
    """The name that SkyPilot has given a machine, of a label that may say that it is the wrong one."""
    return label and label.removesuffix(_MARK)


def deadman(url: str, label: str, look_s: int = _LOOK_EVERY_S, limit_s: int = IDLE_LIMIT_S) -> str:
    """The script that watches a machine from inside; bash, pgrep and curl are all that it needs."""
    marked = shlex.quote(json.dumps({"label": label + _MARK}))
    return (_DEADMAN.replace("URL", url).replace("LOOK_S", str(look_s)).replace("LIMIT_S", str(limit_s))
            .replace("NOTE", WRONG_MACHINE).replace("LABEL", marked))
