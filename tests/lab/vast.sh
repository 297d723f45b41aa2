#!/bin/bash
# The network of the fake of Vast (10.88.0.0/24, where this machine is 10.88.0.1 and the fake listens on port
# 8099), the fake itself, and what they are made of; up.sh calls it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
V=$LAB/vast
# The fake starts instances, whose chroot looks for its programs in this.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p "$V"/{log,cache/pip,cache/uv} "$V"/home/.local/bin "$LAB"/sky/.config/vastai \
    "$V"/image/{etc/ssh,etc/uv,usr/local/bin,usr/local/lib/ldlm-lab,usr/lib/python3.11}

# No GPU and no systemd in an instance, and it is root's already.
cp "$here/instance/nvidia-smi" "$V/image/usr/local/bin/"
printf '#!/bin/bash\nexec "$@"\n' > "$V/image/usr/local/bin/sudo"
printf '#!/bin/bash\nexit 0\n' > "$V/image/usr/local/bin/systemctl"
chmod 755 "$V"/image/usr/local/bin/*
cp "$here/instance/gpu_probe.py" "$V/image/usr/local/lib/ldlm-lab/"
cp "$here/instance/sitecustomize.py" "$V/image/usr/lib/python3.11/"
# SkyPilot's uv, as on the cluster's nodes: $LAB is out of an instance's sight.
cp "$LAB/uv/bin/uv" "$V/image/usr/local/lib/ldlm-lab/"
sed "s#$LAB/uv/bin/uv#/usr/local/lib/ldlm-lab/uv#" "$LAB/uv-here" > "$V/home/.local/bin/uv"
chmod 755 "$V/home/.local/bin/uv"
# A file of the index never changes, whether the mirror in between says so or not.
cat > "$V/image/etc/uv/uv.toml" <<'CONFIG'
[[index]]
url = "https://pypi.org/simple"
default = true
cache-control = { api = "max-age=600", files = "max-age=31536000, immutable" }
CONFIG
# Where pip gets its packages from: what is in /etc an instance sees, what is the user's it does not.
for file in .config/pip/pip.conf .pip/pip.conf; do
    [ ! -f "$HOME/$file" ] || install -D -m 644 "$HOME/$file" "$V/home/$file"
done
[ -s "$V/image/etc/ssh/ldlm_lab_host" ] || ssh-keygen -q -t ed25519 -N '' -f "$V/image/etc/ssh/ldlm_lab_host"
{
    cat <<'CONFIG'
Port 22
HostKey /etc/ssh/ldlm_lab_host
AuthorizedKeysFile .ssh/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxSessions 200
MaxStartups 150:30:200
Subsystem sftp internal-sftp
CONFIG
    # On one line: sshd takes the first SetEnv that it reads and no other.
    settings=$(env | sed -n 's/^\(PIP_[A-Z_]*\)=\(.*\)$/"\1=\2"/p' | tr '\n' ' ')
    [ -z "$settings" ] || echo "SetEnv $settings"
} > "$V/image/etc/ssh/ldlm_lab_sshd"

[ -s "$LAB/sky/.config/vastai/vast_api_key" ] || openssl rand -hex 32 > "$LAB/sky/.config/vastai/vast_api_key"
chmod 600 "$LAB/sky/.config/vastai/vast_api_key"
cd "$root"
.venv/bin/python -m tests.lab.vast_catalog "$LAB/sky/.sky/catalogs/v8"

ip link show ldlmlab > /dev/null 2>&1 || ip link add ldlmlab type bridge
ip addr replace 10.88.0.1/24 dev ldlmlab
ip link set ldlmlab up
echo 1 > /proc/sys/net/ipv4/ip_forward
rule=(POSTROUTING -s 10.88.0.0/24 ! -d 10.88.0.0/24 -j MASQUERADE)
iptables -t nat -C "${rule[@]}" 2> /dev/null || iptables -t nat -A "${rule[@]}"

setsid .venv/bin/python -m tests.lab.fake_vast "$LAB" 10.88.0.1 8099 > "$V/log/fake.log" 2>&1 < /dev/null &
echo $! > "$V/fake.pid"
for _ in $(seq 60); do
    (: < /dev/tcp/10.88.0.1/8099) 2> /dev/null && exit 0
    sleep 0.25
done
cat "$V/log/fake.log" >&2
echo "error: the fake of Vast did not start" >&2
exit 1
