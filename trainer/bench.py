"""`python -m trainer.bench`: the second document of a task, as nodes start it (`trainer/bench_document.py`).

`python -m trainer.bench generate`: generation without a run (`trainer/bench_command.py`).
`python -m trainer.bench train`: training steps without a run (`trainer/bench_train_command.py`).
`python -m trainer.bench plot`: what one of these has found, as a picture (`trainer/bench_plot_command.py`).
"""

import importlib
import os
import sys

from trainer.contract import Env
from trainer.interrupts import ends_at_once

_COMMANDS = {"generate": "trainer.bench_command", "train": "trainer.bench_train_command",
             "plot": "trainer.bench_plot_command"}


def main() -> int:
    """Do what was typed. Returns the exit code; of the document, its node reads a file."""
    if module := _COMMANDS.get("".join(sys.argv[1:2])):
        with ends_at_once("interrupted before it began"):  # it imports much
            command = importlib.import_module(module)
        return int(command.main(sys.argv[2:]))
    if sys.argv[1:] or Env.END_FOLDER not in os.environ:
        print("usage: python -m trainer.bench generate --help, train --help, or plot --help\n"
              "without any of them it is for nodes; of a run: `ldlm bench RUN`", file=sys.stderr)
        return 2
    from trainer.bench_document import main as document

    document()
    return 0


if __name__ == "__main__":
    sys.exit(main())
