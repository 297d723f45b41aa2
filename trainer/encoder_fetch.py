"""Fetches the token encoder's mirror while the ranks start: `python -m trainer.encoder_fetch`. No torch.

Imports and rendezvous take a good part of a minute on a fresh machine, in which its line would lie idle. The
ranks ask for the same files by themselves: who comes first fetches, the others wait. So nothing depends on
this process, and what fails here is told by them.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.config import TokenEncoderConfig, TrainConfig
from trainer.contract import Env, LdlmError
from trainer.encoder_files import SMALL_FILES, local_folder
from trainer.manifest import pinned_by_run
from trainer.mirror_format import fetch_mirror, find_mirror
from trainer.node_watch import end_with_node
from trainer.run_folder import RunFolder
from trainer.store import open_store


def begin(config: TokenEncoderConfig, environment: Mapping[str, str], output: int) -> None:
    """Start it beside the ranks, with their environment; it ends by itself, or with the node.

    Args:
        output: A descriptor to print into.

    Raises:
        ConfigError: As `local_folder`.
    """
    is_here = environment[Env.STORE].startswith("file:") or local_folder(config.name) is not None
    if not is_here:
        subprocess.Popen([sys.executable, "-m", "trainer.encoder_fetch"], env=environment,
                         stdout=output, stderr=output)


def fetch_ahead(config: TokenEncoderConfig, folder: RunFolder, say: Callable[[str], None]) -> None:
    """Bring the mirror that a run will ask for to this machine: first what its ranks want first.

    Raises:
        LdlmError: As `find_mirror`, `fetch_mirror`.
    """
    if found := find_mirror(folder.store, pinned_by_run(config, folder)):
        fetch_mirror(folder.store, *found, lambda _: None, only=SMALL_FILES)
        fetch_mirror(folder.store, *found, say)


def main() -> None:
    """With the environment of a rank."""
    end_with_node(Path(os.environ[Env.END_FOLDER]))
    config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
    folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
    with contextlib.suppress(LdlmError):
        fetch_ahead(config.token_encoder, folder, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
