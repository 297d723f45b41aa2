"""What goes with the weights of an export: a model card with cost, curves and unselected samples, and the
recipe. No torch.
"""

import importlib.util
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from trainer.config import TrainConfig
from trainer.contract import Document, Name
from trainer.kept_rows import Row, RowReader
from trainer.manifest import Manifest
from trainer.run_folder import RunFolder
from trainer.store import NotFoundError

_ROWS = 12  # of a table: more would be read by nobody
_LOSSES = {"loss/diffusion": "L_diff", "loss/hidden": "L_h", "loss/token": "L_w"}
_SCORES = {"eval/reconstruction_accuracy": "tokens reconstructed",
           "eval/reconstruction_accuracy_noisy": "... under noise", "eval/diffusion_loss": "L_diff",
           "eval/diffusion_loss_linear": "L_diff of a linear filter",
           "eval/diffusion_loss_trivial": "L_diff of a trivial predictor", "eval/hidden_loss": "L_h",
           "eval/token_loss": "L_w"}


class Facts(BaseModel):
    """What a model is and what its training took.

    Attributes:
        num_parameters: Trained ones, the latent encoder included.
        num_tokens: That training has seen, repeated ones again.
        train_s: Seconds of training, over all attempts.
        spent_usd: Over all attempts, set-up and lost work included; unrounded, as text.
        price_is_simulated: Nobody sends a bill of it.
        hardware: Of each attempt that trained, each once.
    """

    model_config = ConfigDict(frozen=True)
    num_parameters: int
    num_tokens: int
    train_s: float
    spent_usd: str | None
    price_is_simulated: bool
    hardware: list[str]
    data_fingerprint: str


def facts_of(folder: RunFolder, config: TrainConfig, manifest: Manifest) -> Facts:
    """Read them from a run folder."""
    training = [files for files in folder.attempts() if files.attempt.document is Document.TRAIN]
    beats = [files.heartbeat for files in training if files.heartbeat]
    return Facts(
        num_parameters=sum(_product(shape) for shape in manifest.shapes.values()),
        num_tokens=manifest.step * config.tokens_per_step,
        train_s=round(sum(beat.phases.train_s for beat in beats), 1),
        spent_usd=str(max(beat.spent_usd for beat in beats)) if beats else None,
        price_is_simulated=_is_simulated(folder),
        hardware=list(dict.fromkeys(files.attempt.offer for files in training)),
        data_fingerprint=manifest.data_fingerprint)


def _product(shape: Sequence[int]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number


def _is_simulated(folder: RunFolder) -> bool:
    try:
        return bool(folder.read_json(Name.PLAN)["offers"][Document.TRAIN]["price_is_simulated"])
    except (NotFoundError, KeyError):
        return False


def model_card(folder: RunFolder, config: TrainConfig, facts: Facts, step: int, samples: Sequence[str], *,
               has_plot: bool) -> str:
    """The text of README.md.

    Args:
        folder: The run.
        config: As it was trained.
        facts: What it took.
        step: Of the exported weights.
        samples: Made by the exported weights, the first of their seed.
        has_plot: `curves.png` lies beside it.
    """
    rows = _rows_up_to(folder, step)
    parts = [_head(folder.run_id, facts, config), _facts_table(config, facts, step),
             "## Losses in training\n\n" + _table(rows, _LOSSES),
             "## On held-out text\n\n" + _table(rows, _SCORES),
             "![curves](curves.png)" if has_plot else "", _samples(samples, config), _how_to()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows_up_to(folder: RunFolder, step: int) -> dict[int, Row]:
    return {number: row for number, row in RowReader(folder).rows().items() if number <= step}


def _head(run_id: str, facts: Facts, config: TrainConfig) -> str:
    return ("---\nlibrary_name: ldlm\npipeline_tag: text-generation\ntags:\n- latent-diffusion\n"
            "- diffusion-language-model\n---\n\n"
            f"# {run_id}\n\nA latent diffusion language model (LDLM, arXiv 2605.07933): "
            f"{facts.num_parameters / 1e6:,.1f} M trained parameters, texts of {config.data.sequence_length} "
            f"tokens. It builds on `{config.token_encoder.name}`, a token encoder that was pre-trained "
            "elsewhere and stayed frozen; its own parts were trained from random weights on "
            "the text named below. Judge it by its samples.")


def _facts_table(config: TrainConfig, facts: Facts, step: int) -> str:
    simulated = " (simulated price)" if facts.price_is_simulated else ""
    cost = "not recorded" if not facts.spent_usd else f"${float(facts.spent_usd):.4f}{simulated}"
    lines = [("steps", f"{step:,}"), ("tokens seen", f"{facts.num_tokens:,}"),
             ("training time", f"{facts.train_s / 60:,.1f} min"), ("cost up to the end of training", cost),
             ("hardware", ", ".join(facts.hardware) or "not recorded"), ("text", f"`{config.data.source}`"),
             ("fingerprint of the text", f"`{facts.data_fingerprint[:16]}`"),
             ("token encoder", f"`{config.token_encoder.name}`, pre-trained elsewhere, frozen; not needed "
                               "for generation")]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in lines)


def _table(rows: dict[int, Row], columns: dict[str, str]) -> str:
    """At most twelve rows, even over the steps, the first and the last among them."""
    having = [step for step, row in rows.items() if columns.keys() & row.keys()]
    if not having:
        return "Not recorded."
    num = min(_ROWS, len(having))
    chosen = sorted({having[round(i * (len(having) - 1) / max(1, num - 1))] for i in range(num)})
    lines = ["| step | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for step in chosen:
        cells = (f"{rows[step][name]:.4g}" if name in rows[step] else "" for name in columns)
        lines.append(f"| {step:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _samples(samples: Sequence[str], config: TrainConfig) -> str:
    sampling = config.sampling
    how = f"{sampling.solver}, {sampling.steps} steps, {sampling.grid} grid"
    # Set in by four: nothing in a sample is read as markup, not even a fence.
    texts = ["\n".join("    " + line for line in text.splitlines() or [""]) for text in samples]
    return (f"## Samples\n\nThe first {len(samples)} of seed 0 ({how}), unselected and whole.\n\n"
            + "\n\n<!-- next -->\n\n".join(texts))


def _how_to() -> str:
    return ("## Use\n\n```\nldlm sample --from PATH -n 8\n```\n\nor, in Python, `load_export(PATH, "
            "\"cpu\").texts(8, seed=0)` from `trainer.export`. `recipe.yaml` reproduces the model: "
            "`ldlm launch recipe.yaml`.")


def draw_curves(folder: RunFolder, step: int, path: Path) -> bool:
    """Plot losses and held-out scores up to a step as a PNG. False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    rows = _rows_up_to(folder, step)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    _plot(losses, rows, _LOSSES)
    _plot(scores, rows, {name: _SCORES[name] for name in list(_SCORES)[:4]})
    losses.set(title="training", xlabel="step", yscale="log")
    scores.set(title="held-out text", xlabel="step", ylim=(0, None))
    figure.savefig(path, dpi=120)
    return True


def _plot(axes: Any, rows: dict[int, Row], columns: dict[str, str]) -> None:
    for name, label in columns.items():
        points = [(step, row[name]) for step, row in rows.items() if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    if axes.lines:
        axes.legend(fontsize=8)


def recipe_yaml(recipe: dict[str, Any]) -> str:
    """A recorded recipe as the YAML that `ldlm launch` reads."""
    head = "# Reproduces this model: ldlm launch recipe.yaml\n"
    return head + yaml.safe_dump(_with_numbers(recipe), sort_keys=False, allow_unicode=True)


def _with_numbers(value: Any) -> Any:
    """Money is recorded as text, so that no cent gets lost; a person writes it as a number."""
    if isinstance(value, dict):
        return {key: float(Decimal(item)) if "usd" in key and isinstance(item, str) else _with_numbers(item)
                for key, item in value.items()}
    return [_with_numbers(item) for item in value] if isinstance(value, list) else value
