#!/bin/bash
# Sets the lab up, runs the tests that are named, and ends what it started. Its network and its ports are the
# machine's: one at a time.
exec 9> /tmp/ldlm-lab.lock
if ! flock -n 9; then
    echo "error: another lab is up on this machine: wait for it" >&2
    exit 1
fi
# What it starts does not hold the lock after it.
tests/lab/up.sh 9>&- && .venv/bin/python -m pytest -v -m lab "$@" 9>&-
result=$?
tests/lab/down.sh 9>&-
exit $result
