#!/bin/bash
# Ends what up.sh started, by pid.
LAB=${LAB:-/tmp/ldlm-lab}
S=$LAB/slurm V=$LAB/vast
export PATH=$PATH:/usr/sbin
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
pids=$(cat "$S"/slurmd-*.pid "$S/slurmctld.pid" "$S/ssh/sshd.pid" "$S/munge/pid" "$V/fake.pid" 2> /dev/null)
# What an API server that was killed, by lack of memory say, has left: Pythons whose folder is its home.
for process in /proc/[0-9]*; do
    [ "$(readlink "$process/cwd")" = "$LAB/sky" ] || continue
    case $(readlink "$process/exe") in */python*) pids="$pids ${process#/proc/}" ;; esac
done
# shellcheck disable=SC2086
kill $pids 2> /dev/null
sleep 3
# shellcheck disable=SC2086
kill -9 $pids 2> /dev/null

# Instances that a fake which was killed has left behind; it destroys its own.
for name in $(ip netns list | grep -o '^ldlmvast[0-9]*'); do
    # shellcheck disable=SC2046
    kill -9 $(ip netns pids "$name") 2> /dev/null
    ip netns del "$name"
done
rm -rf /var/tmp/ldlm-lab-vast "$V/fake.pid"
ip link del ldlmlab 2> /dev/null
iptables -t nat -D POSTROUTING -s 10.88.0.0/24 ! -d 10.88.0.0/24 -j MASQUERADE 2> /dev/null
true
