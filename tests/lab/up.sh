#!/bin/bash
# The real SkyPilot on one Debian machine, without a cloud: a Slurm cluster of three virtual nodes, a fake of
# Vast's REST API that rents out namespaces, and an API server that runs managed jobs itself (consolidation
# mode). There is no GPU: instances of the fake have a stand-in of nvidia-smi and of `trainer.gpu_probe`, their
# trainer computes on the CPU, and all else in them is real. The API server's port is the lab's own, so a
# SkyPilot of yours on this machine is left alone. Root; `make lab` calls it. Everything lives under $LAB
# (default /tmp/ldlm-lab) and /var/tmp/ldlm-lab-*; down.sh ends what this started, by pid.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export LAB=${LAB:-/tmp/ldlm-lab} PATH=$PATH:/usr/sbin
for program in slurmctld slurmd sinfo munged sshd rsync lsof ip iptables openssl; do
    command -v $program > /dev/null || {
        echo "error: the lab needs $program" >&2
        echo "  fix: apt-get install --no-install-recommends $(cat "$here/packages.txt")" >&2
        exit 1
    }
done
[ "$(id -u)" = 0 ] || { echo "error: the lab needs root, for namespaces and sshd" >&2; exit 1; }
if (: < /dev/tcp/127.0.0.1/8099) 2> /dev/null; then
    echo "error: port 8099 is taken: the lab is up already" >&2
    echo "  fix: tests/lab/down.sh" >&2
    exit 1
fi
rm -rf "$LAB/sky"  # a managed job of an earlier lab would be recovered, and rent
mkdir -p "$LAB"/slurm/{state,spool,log,munge,ssh,bin} "$LAB"/home "$LAB"/sky/{.sky,.slurm}
chmod 755 "$LAB" "$LAB"/slurm "$LAB"/home "$LAB"/slurm/{munge,ssh,bin}
cat > "$LAB/env.sh" <<EOF
export HOME=$LAB/sky SKYPILOT_DISABLE_USAGE_COLLECTION=1 PYTHONPATH=$here/site
export PATH=$root/.venv/bin:/usr/sbin:/usr/local/bin:/usr/bin:/bin:/sbin SLURM_CONF=$LAB/slurm/slurm.conf
export VAST_URL=http://10.88.0.1:8099 SKYPILOT_API_SERVER_LOCAL_PORT=46680
EOF
"$here/slurm.sh"
"$here/vast.sh"
cat > "$LAB/sky/.slurm/config" <<EOF
Host ldlm
    HostName 127.0.0.1
    Port 2022
    User ldlmlab
    IdentityFile $LAB/slurm/ssh/id
    IdentitiesOnly yes
EOF
cat > "$LAB/sky/.sky/config.yaml" <<EOF
allowed_clouds: [slurm, vast]
jobs:
  controller:
    consolidation_mode: true
EOF
# As `ldlm init` writes it: without it no run is handed over.
for cloud in vast azure gcp aws oci nebius; do
    printf '%s:\n  remote_identity: NO_UPLOAD\n' "$cloud" >> "$LAB/sky/.sky/config.yaml"
done
echo 'plugins: [{class: launcher.sky_plugin.LdlmPlugin}]' > "$LAB/sky/.sky/plugins.yaml"
. "$LAB/env.sh"
cd "$HOME"
sky api stop > /dev/null 2>&1 || true
sky api start
sky check > "$LAB/check.log" 2>&1 || true
for cloud in ldlm 'Vast.*enabled'; do
    grep -q "$cloud" "$LAB/check.log" && continue
    cat "$LAB/check.log"
    echo "error: SkyPilot does not see $cloud" >&2
    exit 1
done
