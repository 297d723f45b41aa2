# Read by `sh` on a machine that may become a controller; says what it is like, a line for each fact.
# Nothing is changed. The signs of a Vast host: its containers have these files and variables (read, Vast's docs).
cd "$HOME" || exit 1
printf 'system=%s\nhostname=%s\n' "$(uname -s)" "$(hostname)"
for name in python3 python3.11 python3.12 python3.13 python3.14; do
    command -v $name > /dev/null && printf 'python=%s %s\n' "$name" "$($name -c '
import importlib.util, sys
print("%d.%d" % sys.version_info[:2], int(all(map(importlib.util.find_spec, ("venv", "ensurepip")))))')"
done
printf 'disk_kib=%s\n' "$(df -Pk . | awk 'NR == 2 { print $4 }')"
awk '/^MemAvailable:/ { print "memory_kib=" $2 }' /proc/meminfo
for sign in /root/.vast_containerlabel "$HOME/.vast_containerlabel"; do
    [ -e "$sign" ] && printf 'vast=%s\n' "$sign"
done
for name in VAST_CONTAINERLABEL CONTAINER_ID; do
    { tr '\0' '\n' < /proc/1/environ; env; } 2> /dev/null | grep -q "^$name=" && printf 'vast=$%s\n' "$name"
done
for name in tar rsync ssh; do
    command -v $name > /dev/null || printf 'lacks=%s\n' "$name"
done
systemctl --user show-environment > /dev/null 2>&1 && command -v loginctl > /dev/null && echo 'service=systemd'
command -v crontab > /dev/null && cat /proc/[0-9]*/comm 2> /dev/null | grep -qxE 'crond?' && echo 'service=cron'
printf 'port=%s\n' "${SKYPILOT_API_SERVER_LOCAL_PORT:-46580}"
[ -n "$(ls -A ldlm 2> /dev/null | grep -v '^\.venv$')" ] && echo 'checkout=taken'
[ -f .ldlm/controller.json ] && printf 'state=%s\n' "$(cat .ldlm/controller.json)"
true
