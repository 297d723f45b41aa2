#!/bin/bash
# munged, slurmctld, three slurmd and a login node's sshd on 127.0.0.1:2022; up.sh calls it. Each slurmd has a
# /tmp and a host name of its own.
set -euo pipefail
S=$LAB/slurm
user=ldlmlab
nodes=(node1 node2 node3)
id $user > /dev/null 2>&1 || useradd -M -d "$LAB/home" -s /bin/bash -p '*' $user
chown $user: "$LAB/home"

# SkyPilot asks uv for Python 3.10, which it would download: it gets Debian's own.
[ -x "$LAB/uv/bin/uv" ] || "$(dirname "$0")/../../.venv/bin/python" -m pip install -q --target "$LAB/uv" uv
cat > "$LAB/uv-here" <<EOF
#!/bin/bash
words=()
for word in "\$@"; do [ "\$word" = 3.10 ] && word=/usr/bin/python3.11; words+=("\$word"); done
export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1
exec $LAB/uv/bin/uv "\${words[@]}"
EOF
cat > "$S/bin/task-prolog" <<EOF
#!/bin/bash
home=$LAB/home/.sky_clusters/\$SLURM_JOB_NAME
[ -d "\$home" ] || home=$LAB/home/.sky_clusters/\$(/usr/bin/squeue -h -j \$SLURM_JOB_ID -o %j)
if [ -d "\$home" ]; then mkdir -p "\$home/.local/bin"; ln -sf $LAB/uv-here "\$home/.local/bin/uv"; fi
exit 0
EOF
chmod 755 "$LAB/uv-here" "$S/bin/task-prolog"

[ -s "$S/munge/key" ] || head -c 1024 /dev/urandom > "$S/munge/key"
chmod 600 "$S/munge/key"
chown -R munge:munge "$S/munge"
setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --force --key-file="$S/munge/key" \
    --socket="$S/munge/sock" --pid-file="$S/munge/pid" --log-file="$S/munge/log" --seed-file="$S/munge/seed"

cat > "$S/slurm.conf" <<EOF
ClusterName=ldlm
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket=$S/munge/sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/spool/%n
SlurmctldPidFile=$S/slurmctld.pid
SlurmdPidFile=$S/slurmd-%n.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd-%n.log
# Not linuxproc: with it a cancelled trainer lives on and fakes a resume.
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=3
SlurmdTimeout=15
InactiveLimit=0
MinJobAge=60
TaskProlog=$S/bin/task-prolog
NodeName=node1 NodeAddr=127.0.0.11 Port=17001 CPUs=64 RealMemory=400000
NodeName=node2 NodeAddr=127.0.0.12 Port=17002 CPUs=64 RealMemory=400000
NodeName=node3 NodeAddr=127.0.0.13 Port=17003 CPUs=64 RealMemory=400000
PartitionName=cpu Nodes=node[1-3] Default=YES MaxTime=24:00:00 State=UP
EOF
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\nCgroupMountpoint=/sys/fs/cgroup\n' > "$S/cgroup.conf"
{ cat /etc/hosts; printf '127.0.0.11 node1\n127.0.0.12 node2\n127.0.0.13 node3\n'; } > "$S/hosts"
export SLURM_CONF=$S/slurm.conf
/usr/sbin/slurmctld -c
for node in "${nodes[@]}"; do
    tmp=/var/tmp/ldlm-lab-$node
    mkdir -p "$S/spool/$node" "$tmp${LAB#/tmp}"
    chmod 1777 "$tmp"
    unshare -m -u --propagation private bash -c "hostname $node && mount --bind $S/hosts /etc/hosts \
        && mount --bind $LAB $tmp${LAB#/tmp} && mount --rbind $tmp /tmp && exec /usr/sbin/slurmd -N $node"
done

mkdir -p /run/sshd
for key in host id; do [ -s "$S/ssh/$key" ] || ssh-keygen -q -t ed25519 -N '' -f "$S/ssh/$key"; done
cp "$S/ssh/id.pub" "$S/ssh/authorized"
chmod 644 "$S/ssh/authorized"
cat > "$S/ssh/sshd_config" <<EOF
Port 2022
ListenAddress 127.0.0.1
HostKey $S/ssh/host
PidFile $S/ssh/sshd.pid
AuthorizedKeysFile $S/ssh/authorized .ssh/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
MaxSessions 200
MaxStartups 150:30:200
Subsystem sftp internal-sftp
SetEnv SLURM_CONF=$S/slurm.conf
EOF
/usr/sbin/sshd -f "$S/ssh/sshd_config" -E "$S/log/sshd.log"
for _ in $(seq 80); do [ "$(sinfo -h -o %T | sort -u)" = idle ] && break; sleep 0.25; done
sinfo -N -o '%N %T %c %m'
