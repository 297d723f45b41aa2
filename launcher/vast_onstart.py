"""What a machine of Vast does when it starts: let SkyPilot in, give itself back when nobody uses it. Pure.

The second part, a dead man's switch, needs neither SkyPilot nor this machine: where the server that would end
a rental has died, the rental ends all the same. Vast gives every machine a key that is good for itself alone
(`CONTAINER_API_KEY`), so that no key of the account has to be there. By it the machine also says, in its
label, that its node has found it to be the wrong one (`trainer/wrong_machine.py`): who rents for the run sees
that, and needs no key of the run's store. And by it the machine asks what its GPUs cost now, where its bid
may be raised while it runs (`trainer/live_price.py`).
"""

import json
import shlex

from trainer.contract import VAST_SWITCH, WRONG_MACHINE
from trainer.live_price import ROW

IDLE_LIMIT_S = 1800  # without a program of ours; before the first one SkyPilot installs itself (guess)
_LOOK_EVERY_S = 5  # a node that has found its machine wrong waits for it
_MARK = " (wrong machine)"  # behind the name that SkyPilot has given it
_FILE = f"~/{VAST_SWITCH}"
# Images lack this and that: sh, sleep, cat, tr and rm are taken for granted, and one of three that speak HTTP
# (busybox has a wget that can only get). The key is in no command line: a process list is no place for it.
# Where Vast does not let a machine destroy itself, stopping ends at least the bill of its GPUs, as the end of
# its container may (guess). A machine that cannot be looked at counts as used.
_DEADMAN = """\
export CONTAINER_ID CONTAINER_API_KEY
to=URL/api/v0/instances/$CONTAINER_ID/ json="Content-Type: application/json" cannot_ask=111 blind=
has() { command -v $1 > /dev/null; }
ask() {
    if has curl; then
        printf "header = \\"Authorization: Bearer %s\\"\\n" "$CONTAINER_API_KEY" \\
            | curl -fsS -m 60 -K - -X $1 -H "$json" -d "$2" $to
    elif has python3; then
        python3 -c "
import os, sys
from urllib.request import Request, urlopen
key, kind = 'Bearer ' + os.environ['CONTAINER_API_KEY'], 'application/json'
print(urlopen(Request('$to', sys.argv[2].encode(), {'Authorization': key, 'Content-Type': kind},
                      method=sys.argv[1]), timeout=60).read().decode())" $1 "$2"
    elif wget --version > /dev/null 2>&1; then
        (umask 077; printf "header = Authorization: Bearer %s\\n" "$CONTAINER_API_KEY" > ~/.ldlm_wgetrc)
        WGETRC=~/.ldlm_wgetrc wget -nv -O - -T 60 -t 1 --method=$1 --header="$json" --body-data="$2" $to
    else
        return $cannot_ask
    fi
}
used() {
    seen=$(cat /proc/[0-9]*/cmdline | tr "\\0" " ") 2> /dev/null
    if [ -z "$seen" ]; then
        [ $blind ] || echo "cannot look into /proc: this machine never ends itself"
        blind=yes
    fi
    case "$seen" in *" -m trainer"[.]* | "") return 0; esac
    return 1
}
idle_s=0
while sleep LOOK_S; do
    [ -e ~/NOTE ] && ask PUT LABEL && rm ~/NOTE
PRICE    if used; then idle_s=0; else idle_s=$((idle_s + LOOK_S)); fi
    [ $idle_s -lt LIMIT_S ] && continue
    ask DELETE "" || ask PUT "{\\"state\\": \\"stopped\\"}"
    [ $? = $cannot_ask ] || continue
    echo "cannot ask Vast, there is no curl, python3 or wget: powering off"
    poweroff
    kill -s TERM 1
done
"""

# Where the bid follows the market: what Vast says of this machine, once a minute, whole or not at all.
_PRICE = """\
    looks=$((${looks:-0} + 1))
    [ $((looks % EVERY)) = 0 ] && (umask 077; ask GET "" > ~/ROW.new) && mv ~/ROW.new ~/ROW
"""
_PRICE_EVERY_S = 60


def first_commands(ssh_public_key: str | None, url: str, label: str, *, bid_follows: bool = False) -> str:
    """One line of shell, run as root when the machine starts.

    Args:
        ssh_public_key: Of SkyPilot.
        url: Of Vast's API, without a path.
        label: Its name at Vast, by which SkyPilot finds it.
        bid_follows: Its price may change while it runs, and its node should know.
    """
    commands = ["touch ~/.no_auto_tmux"]
    if ssh_public_key:
        commands += ["mkdir -p ~/.ssh", "chmod 700 ~/.ssh", 'echo "" >> ~/.ssh/authorized_keys',
                     f"echo {shlex.quote(ssh_public_key.strip())} >> ~/.ssh/authorized_keys",
                     "chmod 600 ~/.ssh/authorized_keys"]
    commands += [f"printf %s {shlex.quote(deadman(url, label, bid_follows=bid_follows))} > {_FILE}",
                 f"(setsid sh {_FILE} > {_FILE}.log 2>&1 < /dev/null &)"]
    return ";".join(commands)


def without_mark(label: str | None) -> str | None:
    """The name that SkyPilot has given a machine, of a label that may say that it is the wrong one."""
    return label and label.removesuffix(_MARK)


def deadman(url: str, label: str, look_s: int = _LOOK_EVERY_S, limit_s: int = IDLE_LIMIT_S, *,
            bid_follows: bool = False) -> str:
    """The script that watches a machine from inside, in the language of any sh."""
    marked = shlex.quote(json.dumps({"label": label + _MARK}))
    price = _PRICE.replace("EVERY", str(max(1, _PRICE_EVERY_S // look_s))).replace("ROW", ROW)
    return (_DEADMAN.replace("PRICE", price if bid_follows else "").replace("URL", url)
            .replace("LOOK_S", str(look_s)).replace("LIMIT_S", str(limit_s))
            .replace("NOTE", WRONG_MACHINE).replace("LABEL", marked))
