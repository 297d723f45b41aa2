#!/bin/bash
# Ends what up.sh started, by pid.
LAB=${LAB:-/tmp/ldlm-lab}
S=$LAB/slurm
[ -f "$LAB/env.sh" ] || exit 0
(. "$LAB/env.sh"; cd "$HOME" && sky api stop)
export SLURM_CONF=$S/slurm.conf
jobs=$(timeout 5 squeue -h -o %i 2> /dev/null)
if [ -n "$jobs" ]; then
    # shellcheck disable=SC2086  # several ids
    scancel --signal=KILL --full $jobs && scancel $jobs
    sleep 3
fi
# Read first: a slurmd that still waits for a job has removed its file already.
pids=$(cat "$S"/slurmd-*.pid "$S/slurmctld.pid" "$S/ssh/sshd.pid" "$S/munge/pid" 2> /dev/null)
# shellcheck disable=SC2086
kill $pids 2> /dev/null
sleep 3
# shellcheck disable=SC2086
kill -9 $pids 2> /dev/null
true
