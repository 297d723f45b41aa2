"""Runs the instances of the fake of Vast: namespaces, a disk, an sshd each. Root on Linux."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.vast_offers import Card

DISKS = Path("/var/tmp/ldlm-lab-vast")
_SSH_PORT = 22
_BOOT_S = 60
_DEATH_S = 20


class NamespaceHost:
    """Boots and kills instances on this machine.

    Args:
        logs: Folder for what each instance prints.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._seen: dict[int, tuple[int, int]] = {}  # counters of an interface start at 0 at each boot

    def address(self, instance_id: int) -> str:
        """Where its sshd listens."""
        return f"10.88.0.{10 + instance_id % 240}"

    def write_disk(self, instance_id: int, onstart: str) -> None:
        """Make its disk, with the script that it runs whenever it boots."""
        home = DISKS / str(instance_id) / "home"
        home.mkdir(parents=True)
        (home / ".onstart.sh").write_text(onstart + "\n")

    def boot(self, instance_id: int, card: Card, count: int, own_key: str,
             is_up: Callable[[], None]) -> None:
        """Start it; `is_up` is called from another thread once its sshd answers."""
        words = map(str, (instance_id, self.address(instance_id), card.name, card.memory_mib, count, own_key))
        script = Path(__file__).with_name("vast_instance.sh")
        with self._log(instance_id).open("ab") as log:
            process = subprocess.Popen(["bash", script, *words], stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True)
        self._running[instance_id] = process
        threading.Thread(target=self._wait, args=(instance_id, process, is_up), daemon=True).start()

    def _wait(self, instance_id: int, process: "subprocess.Popen[bytes]", is_up: Callable[[], None]) -> None:
        give_up = time.monotonic() + _BOOT_S
        while time.monotonic() < give_up and process.poll() is None:
            try:
                socket.create_connection((self.address(instance_id), _SSH_PORT), timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return is_up()
        if self._running.get(instance_id) is process:  # not killed meanwhile
            print(f"error: instance {instance_id} did not come up: {self._log(instance_id)}", flush=True)

    def kill(self, instance_id: int) -> None:
        """End every process of it at once, as the loss of a machine does. Its disk stays.

        Raises:
            RuntimeError: Some process has survived, so what a test would see is no lost machine.
        """
        process = self._running.pop(instance_id, None)
        self._seen.pop(instance_id, None)
        if process is not None:
            namespace = _pid_namespace(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            give_up = time.monotonic() + _DEATH_S
            while left := namespace and processes_in(namespace):
                if time.monotonic() > give_up:
                    raise RuntimeError(f"processes {left} of instance {instance_id} outlived it")
                time.sleep(0.05)
        for words in (["netns", "del", f"ldlmvast{instance_id}"], ["link", "del", f"v{instance_id}"]):
            subprocess.run(["ip", *words], stderr=subprocess.DEVNULL, check=False)

    def remove_disk(self, instance_id: int) -> None:
        """Delete what it has written; the files themselves, which takes seconds, after this call."""
        gone = (DISKS / str(instance_id)).rename(DISKS / f"gone-{instance_id}")
        threading.Thread(target=shutil.rmtree, args=(gone,)).start()

    def _log(self, instance_id: int) -> Path:
        return self._logs / f"instance-{instance_id}.log"

    def traffic(self, instance_id: int) -> tuple[int, int]:
        """Bytes that have left it and that have reached it since the last call."""
        counters = Path(f"/sys/class/net/v{instance_id}/statistics")
        try:  # the host's end of the cable: what it receives has left the instance
            now = int((counters / "rx_bytes").read_text()), int((counters / "tx_bytes").read_text())
        except OSError:
            return 0, 0
        before = self._seen.get(instance_id, (0, 0))
        self._seen[instance_id] = now
        return now[0] - before[0], now[1] - before[1]


def processes_in(namespace: str) -> list[int]:
    """Of a pid namespace (`pid:[4026532000]`), as this machine numbers them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns/pid") == namespace:
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _pid_namespace(unshare_pid: int) -> str:
    """The namespace of its children; empty while it has not made one."""
    try:
        theirs, own = (os.readlink(f"/proc/{unshare_pid}/ns/{kind}") for kind in ("pid_for_children", "pid"))
    except OSError:
        return ""
    return theirs if theirs != own else ""
