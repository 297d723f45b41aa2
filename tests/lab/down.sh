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
for file in "$S"/slurmd-*.pid "$S/slurmctld.pid" "$S/ssh/sshd.pid" "$S/munge/pid"; do
    [ -s "$file" ] && kill "$(cat "$file")" 2> /dev/null
done
sleep 3
for file in "$S"/slurmd-*.pid "$S/slurmctld.pid"; do
    [ -s "$file" ] && kill -9 "$(cat "$file")" 2> /dev/null
done
true
