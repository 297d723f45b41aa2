#!/bin/bash
# vast_instance.sh ID IP CARD MEMORY_MIB COUNT KEY: one rented "instance" until it is killed. A network, pids, mounts
# and a host name of its own; this machine's root under an overlay, with an own /root, /tmp and /run; its onstart
# script, then sshd on IP:22. What it writes stays in /var/tmp/ldlm-lab-vast/ID, as a stopped instance's disk does.
set -euo pipefail
id=$1 ip=$2 card=$3 memory_mib=$4 count=$5 own_key=${6:-}
disk=/var/tmp/ldlm-lab-vast/$id name=ldlmvast$id
mkdir -p "$disk"/{upper,work,root,home,tmp} /run/sshd
chmod 700 "$disk/home"
chmod 1777 "$disk/tmp"
cp -a "$LAB/vast/image/." "$disk/upper/"
cp -a "$LAB/vast/home/." "$disk/home/"
for _ in $(seq "$count"); do echo "$card, $memory_mib, $((memory_mib - 512)), 580.95.05"; done \
    > "$disk/upper/etc/ldlm-lab-cards"
printf '127.0.0.1 localhost\n%s vast%s\n' "$ip" "$id" > "$disk/upper/etc/hosts"

ip netns add "$name"
ip link add "v$id" type veth peer name eth0 netns "$name"
ip link set "v$id" master ldlmlab up
ip -n "$name" addr add "$ip/24" dev eth0
ip -n "$name" link set eth0 up
ip -n "$name" link set lo up
ip -n "$name" route add default via 10.88.0.1

exec ip netns exec "$name" unshare -m -u -p -f --kill-child --propagation private bash -c "
    set -e
    root=$disk/root
    mount -t overlay overlay -o lowerdir=/,upperdir=$disk/upper,workdir=$disk/work \$root
    mount --bind $disk/home \$root/root
    mount --bind $disk/tmp \$root/tmp
    mkdir -p \$root/root/.cache/{pip,uv}
    mount --bind $LAB/vast/cache/pip \$root/root/.cache/pip
    mount --bind $LAB/vast/cache/uv \$root/root/.cache/uv
    mount -t proc proc \$root/proc
    mount --rbind /dev \$root/dev
    mount -t tmpfs tmpfs \$root/run
    mkdir -p \$root/run/sshd
    hostname vast$id
    exec chroot \$root env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        CONTAINER_ID=$id CONTAINER_API_KEY=$own_key \
        bash -c 'cd && bash /root/.onstart.sh; exec /usr/sbin/sshd -D -e -f /etc/ssh/ldlm_lab_sshd'"
