"""Commands that need the trainer's environment: they run there, on this terminal."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from launcher.errors import LdlmError
from launcher.process_tree import dying_with_us
from launcher.recipe import checkout_folder
from launcher.runs import default_store_url, find_run
from launcher.settings import usual_store_url
from trainer.contract import Env
from trainer.humaneval_options import read_humaneval_options
from trainer.measure_options import read_measure_options
from trainer.sample_options import read_export_options, read_sample_options
from trainer.wandb_options import read_wandb_options

TRAIN_PYTHON = "LDLM_TRAIN_PYTHON"
# The command lines that name a run.
_OPTIONS = {"trainer.sample": read_sample_options, "trainer.export": read_export_options,
            "trainer.wandb_command": read_wandb_options,
            "trainer.measure": read_measure_options, "trainer.humaneval": read_humaneval_options}


def run_command(module: str, arguments: Sequence[str]) -> int:
    """Run the module behind a command as `run_in_trainer` does, told where the run is that it names.

    Ends the program with code 2 when such a command line is wrong.

    Raises:
        RunRecordError: There is no such run.
        LdlmError: There is no trainer's environment.
    """
    options = _OPTIONS[module](arguments) if module in _OPTIONS else None
    if options is None or options.run is None:
        return run_in_trainer(module, arguments)
    return run_in_trainer(module, [*arguments, "--store", find_run(options.run, options.store).store.address])


def run_in_trainer(module: str, arguments: Sequence[str]) -> int:
    """Run a module of the trainer with its own Python, on this terminal and in this folder.

    Args:
        module: Such as `trainer.prepare`.
        arguments: Of its command line. What they leave open, LDLM_STORE says: the usual store.

    Returns:
        Its exit code; of one that a signal ended, 128 and the signal, as shells count.

    Raises:
        LdlmError: There is no such environment.
    """
    # -P: what lies in the user's folder must not pass for a package.
    command = [str(trainer_python()), "-P", "-m", module, *arguments]
    paths = [str(checkout_folder()), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths),
                        Env.STORE: usual_store_url() or default_store_url()}
    process = subprocess.Popen(dying_with_us(command), env=env)
    with _signals_left_to(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


def trainer_python() -> Path:
    """The Python of the trainer's environment: LDLM_TRAIN_PYTHON, else of `.venv-train` in the checkout.

    Raises:
        LdlmError: It is not there.
    """
    named = os.environ.get(TRAIN_PYTHON)
    path = Path(named) if named else checkout_folder() / ".venv-train" / "bin" / "python"
    if not (path.is_file() and os.access(path, os.X_OK)):  # not the environment's folder
        raise LdlmError("there is no trainer's environment", place=str(path),
                        fix=f"set {TRAIN_PYTHON} to its Python" if named else
                            f"make it: make -C {checkout_folder()} .venv-train (some minutes, once)")
    return path


@contextmanager
def _signals_left_to(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Ctrl-C reaches the whole terminal group, so the process hears it by itself; SIGTERM is passed on."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
              signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
