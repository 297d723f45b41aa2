"""Which of the GPUs that are paid for do nothing? Asked of the driver, beside the work. No torch.

A rank that hangs or waits for text keeps its process and its rent; what it does not keep is its GPU busy.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from trainer.contract import Env
from trainer.machine import is_model
from trainer.run_folder import IdleGpu

_LOOK_EVERY_S = 15.0  # the driver's figure is of the last second or less; asking takes half of one (guess)
_IDLE_S = 120.0  # a save, a log row, a short evaluation on one rank are none (guess)
_IDLE_PERCENT = 2  # a desktop on the same card (guess)
_ASK_S = 60


class Load(NamedTuple):
    """Of one card.

    Attributes:
        number: As the driver counts them.
        name: The driver's.
        percent: Of the last moment in which it computed; None where the driver does not say.
    """

    number: int
    name: str
    percent: int | None


def ask_loads(environ: Mapping[str, str]) -> list[Load]:
    """What the cards that this process may use are doing; nothing where the driver does not answer."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index,name,utilization.gpu", "--format=csv,noheader,nounits"]
    if mine := environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={mine}")
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines()]
    return [Load(int(row[0]), row[1], int(row[2]) if row[2].isdigit() else None)
            for row in rows if len(row) == 3 and row[0].isdigit()] if asked.returncode == 0 else []


class IdleGpus:
    """Remembers when each card of one node was last seen at work.

    Args:
        environ: Of this process: `Env.GPU` says what is paid for, an empty one that nobody has to look.
        clock: Seconds that never go back.
    """

    def __init__(self, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._model = environ.get(Env.GPU, "").partition(":")[0]
        self._environ, self._clock = environ, clock
        self._busy_at: dict[int, float] = {}
        self._found: tuple[IdleGpu, ...] = ()

    def found(self) -> tuple[IdleGpu, ...]:
        """Those that had done nothing for two minutes when the driver last answered."""
        return self._found

    def look(self) -> None:
        """Ask the driver. May take a minute, or never come back from a driver that is broken."""
        loads, now = ask_loads(self._environ), self._clock()
        mine = [load for load in loads if is_model(load.name, self._model)]
        for load in mine:
            if load.percent is None or load.percent > _IDLE_PERCENT:
                self._busy_at[load.number] = now
            self._busy_at.setdefault(load.number, now)
        idle = [IdleGpu(number=load.number, name=load.name, idle_s=now - self._busy_at[load.number])
                for load in mine]
        self._found = tuple(gpu for gpu in idle if gpu.idle_s >= _IDLE_S)

    def watch(self) -> None:
        """Look from now on, on a thread of its own: nothing waits for it."""
        if self._model:
            threading.Thread(target=self._look_for_ever, daemon=True, name="idle gpus").start()

    def _look_for_ever(self) -> None:
        while True:
            self.look()
            time.sleep(_LOOK_EVERY_S)
