#!/bin/bash
# The real SkyPilot on one Debian machine, without a cloud: a Slurm cluster of three virtual nodes, and an API
# server that runs managed jobs itself (consolidation mode). Root; `make lab` calls it. Everything lives under
# $LAB (default /tmp/ldlm-lab) and /var/tmp/ldlm-lab-*; down.sh ends what this started, by pid.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export LAB=${LAB:-/tmp/ldlm-lab} PATH=$PATH:/usr/sbin
for program in slurmctld slurmd sinfo munged sshd rsync lsof; do
    command -v $program > /dev/null || {
        echo "error: the lab needs $program" >&2
        echo "  fix: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge" \
             "openssh-server rsync lsof procps" >&2
        exit 1
    }
done
[ "$(id -u)" = 0 ] || { echo "error: the lab needs root, for mount namespaces and sshd" >&2; exit 1; }
mkdir -p "$LAB"/slurm/{state,spool,log,munge,ssh,bin} "$LAB"/home "$LAB"/sky/{.sky,.slurm}
chmod 755 "$LAB" "$LAB"/slurm "$LAB"/home "$LAB"/slurm/{munge,ssh,bin}
cat > "$LAB/env.sh" <<EOF
export HOME=$LAB/sky SKYPILOT_DISABLE_USAGE_COLLECTION=1 PYTHONPATH=$here/site
export PATH=$root/.venv/bin:/usr/sbin:/usr/local/bin:/usr/bin:/bin:/sbin SLURM_CONF=$LAB/slurm/slurm.conf
EOF
"$here/slurm.sh"
cat > "$LAB/sky/.slurm/config" <<EOF
Host ldlm
    HostName 127.0.0.1
    Port 2022
    User ldlmlab
    IdentityFile $LAB/slurm/ssh/id
    IdentitiesOnly yes
EOF
cat > "$LAB/sky/.sky/config.yaml" <<EOF
allowed_clouds: [slurm]
jobs:
  controller:
    consolidation_mode: true
EOF
. "$LAB/env.sh"
cd "$HOME"
sky api stop > /dev/null 2>&1 || true
sky api start
sky check > "$LAB/check.log" 2>&1 || true
grep -q ldlm "$LAB/check.log" || { cat "$LAB/check.log"; echo "error: SkyPilot does not see the cluster" >&2; exit 1; }
