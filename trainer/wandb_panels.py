"""A W&B workspace with the panels that tell whether a latent diffusion language model learns. No torch."""

from collections.abc import Mapping, Sequence

import wandb
import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

from trainer.config import WandbConfig
from trainer.contract import LdlmError
from trainer.wandb_view import STEP

# Names of rows, by section and title; what is compared stands in one panel.
SECTIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "Does it learn": {
        "L_diff, held out, beside the trivial predictor": (
            "eval/diffusion_loss", "eval/diffusion_loss_linear", "eval/diffusion_loss_trivial"),
        "reconstruction of held-out tokens: clean, under noise, from the denoiser's estimate": (
            "eval/reconstruction_accuracy", "eval/reconstruction_accuracy_noisy",
            "eval/reconstruction_accuracy_denoised"),
        "L_h, held out, beside the trivial predictor": ("eval/hidden_loss", "eval/hidden_loss_trivial"),
        "L_w, held out": ("eval/token_loss",),
        "distinct-n of the samples, pairs beside held-out text": (
            "eval/distinct_1", "eval/distinct_2", "eval/distinct_2_text"),
    },
    "Losses": {"L_h": ("loss/hidden",), "L_w": ("loss/token",), "L_diff": ("loss/diffusion",)},
    "Latents": {
        "variance across texts": ("eval/latent_variance",),
        "standard deviation across texts, least and greatest channel": (
            "eval/latent_std_min", "eval/latent_std_max"),
        "effective rank": ("eval/latent_rank",),
        "cosine between texts": ("eval/latent_cosine",),
    },
    "Optimization": {
        "gradient norms by part": ("grad_norm/latent_encoder", "grad_norm/latent_decoder",
                                   "grad_norm/token_decoder", "grad_norm/denoiser"),
        "pull of L_diff on the encoder, as a share of L_h's": ("eval/encoder_grad_ratio",),
        "pulls of L_h and L_diff on the encoder": ("eval/encoder_grad_hidden", "eval/encoder_grad_diffusion"),
        "gamma: what the encoder hears of L_diff": ("gamma",),
        "learning rate": ("learning_rate",), "q(u): where on [0, 1] times are drawn": ("time_density",),
    },
    "Machine and money": {
        "tokens/s": ("tokens_per_s",), "MFU": ("mfu",), "wait for text, s a step": ("data_wait_s",),
        "GPU memory, GiB": ("peak_memory_gib",), "spent, $": ("spent_usd",), "goodput": ("goodput",),
        "training at risk, s": ("checkpoint_age_s",),
    },
}
_TABLES = ("eval/reconstructions", "eval/samples", "samples")


def workspace(entity: str, project: str) -> workspaces.Workspace:
    """The workspace as an object; nothing is sent."""
    sections = [workspaces.Section(name=name, is_open=True, panels=[
        panels.LinePlot(title=title, x=STEP, y=list(metrics)) for title, metrics in plots.items()])
        for name, plots in SECTIONS.items()]
    tables = [panels.WeavePanelSummaryTable(table_name=name) for name in _TABLES]
    sections.append(workspaces.Section(name="Texts", is_open=True, panels=tables))
    return workspaces.Workspace(entity=entity, project=project, name="ldlm", sections=sections,
                                settings=workspaces.WorkspaceSettings(x_axis=STEP))


def save_workspace(config: WandbConfig) -> str:
    """Make the workspace in the project of a run. Returns its URL.

    Raises:
        LdlmError: W&B cannot be reached, or refuses.
    """
    try:
        entity = config.entity or wandb.Api().default_entity
        return str(workspace(str(entity), config.project).save().url)
    except Exception as error:  # of HTTP, of GraphQL and of the package itself
        raise LdlmError(f"the workspace was not made: {type(error).__name__}: {error}", place="W&B",
                        fix="see that the project exists (`ldlm wandb sync RUN`) and WANDB_API_KEY may write "
                            "to it") from error
