"""Rules of lint about any cloud: behaviour of SkyPilot 0.14.1 that fails silently or costs money. Pure.

Each docstring begins with the behaviour that the rule guards against.
"""

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from launcher.course import ELSEWHERE, ON_COURSE
from launcher.lint_part import Found, TaskPart
from launcher.lint_vast import VAST
from launcher.render import NO_STORE, leftover_nulls
from launcher.vast_search import IMAGE
from trainer.contract import Document, Env, ExitCode
from trainer.cuda import cuda_of

_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|TOKEN(?!IZER)|API_?KEY|ACCESS_KEY)", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20}|-----BEGIN [A-Z ]*PRIVATE KEY|"
    r"\b[0-9a-f]{40}\b|"  # a W&B key
    r"://[^/\s]+:[^/\s]+@|[?&](secret|password|sig|access_key|secret_access_key)[^=&]*=")
_RENTED = (VAST, "azure", "gcp")
_GEFORCE = re.compile(r"RTX[2-5]0\d0")
_NEEDS_CUDA_12_8 = re.compile(r"RTX50\d0|RTXPRO\d|B[23]00|GB[23]00")  # Blackwell: sm_120, sm_100
_LOCAL_PATH = re.compile(r"(?![~/])(?!\w+://).")


def looks_secret(text: str) -> bool:
    """True for what holds a key or a password, as far as its form shows."""
    return _SECRET_VALUE.search(text) is not None


def null_value(part: TaskPart) -> Iterator[Found]:
    """SkyPilot loads a null infra, num_nodes or secret as if it were not there."""
    for path in leftover_nulls(part.body):
        yield (path, "is null, which SkyPilot may load without a word",
               "fill the hole in the template or take the key out")


def infra_local(part: TaskPart) -> Iterator[Found]:
    """SkyPilot rejects `infra: local`."""
    for machine in part.machines("local"):
        yield (machine.where("infra"), "SkyPilot has no infra called local",
               "leave infra out: the local engine needs none")


def job_name(part: TaskPart) -> Iterator[Found]:
    """A run at a cloud is found by the name of its job: SkyPilot's own task ids change over recoveries."""
    run_id = part.env(Env.RUN_ID)
    if run_id and part.job_name != run_id:
        called = f"is called {part.job_name}" if part.job_name else "has no name"
        yield (f"envs.{Env.RUN_ID}", f"run {run_id} would not be found again: its job {called}",
               f"let the task begin with a document that says only `name: {run_id}`")


def document_order(part: TaskPart) -> Iterator[Found]:
    """SkyPilot runs documents in the order in which they are written, and stops at the first that fails."""
    if part.name == Document.TRAIN and Document.BENCH in part.before:
        yield ("name", "comes after bench, which would find no checkpoint to benchmark",
               "write train first, then bench")


def skypilot_task_id(part: TaskPart) -> Iterator[Found]:
    """SKYPILOT_TASK_ID is another one after the API server restarted between two recoveries."""
    for key in ("setup", "run"):
        if "SKYPILOT_TASK_ID" in str(part.body.get(key)):
            yield (key, "SKYPILOT_TASK_ID may be another one after a recovery",
                   f"use {Env.RUN_ID}, which a run keeps")


def other_recovery_code(part: TaskPart) -> Iterator[Found]:
    """Listed exit codes restart without limit; 137 loads, and is what killed peers report."""
    for machine in part.machines():
        for code in machine.recovery_codes:
            if code not in (ExitCode.RECOVER, None):
                yield (f"{machine.where('job_recovery')}.recover_on_exit_codes",
                       f"exit code {code} would restart the task without limit",
                       f"list {int(ExitCode.RECOVER)} alone")


def recovery_code_missing(part: TaskPart) -> Iterator[Found]:
    """A node that has saved and asks for another attempt would be taken for one that has failed."""
    for machine in part.machines():
        if part.name in list(Document) and ExitCode.RECOVER not in machine.recovery_codes:
            yield (f"{machine.where('job_recovery')}.recover_on_exit_codes",
                   f"exit code {int(ExitCode.RECOVER)} is not listed, so a node that saved and asks for "
                   "another attempt would end the run",
                   f"list {int(ExitCode.RECOVER)}")


def restarts_on_errors(part: TaskPart) -> Iterator[Found]:
    """SkyPilot counts a wrong recipe as a crash, and rents again for the same mistake."""
    for machine in part.machines():
        count = machine.recovery.get("max_restarts_on_errors") or 0
        if part.name in list(Document) and machine.cloud not in ("", "local") and count > 0:
            yield (f"{machine.where('job_recovery')}.max_restarts_on_errors",
                   f"SkyPilot would rent {count} more times for a recipe that is wrong",
                   f"set it to 0: a node asks for another attempt by exit code {int(ExitCode.RECOVER)}")


def same_machine_again(part: TaskPart) -> Iterator[Found]:
    """The strategy FAILOVER starts a task that asks for another machine once more on the one that it has."""
    wanted = ON_COURSE if part.env(Env.COURSE) else ELSEWHERE
    for machine in part.machines():
        strategy = machine.recovery.get("strategy")
        if part.name in list(Document) and machine.cloud not in ("", "local") and strategy != wanted:
            yield (f"{machine.where('job_recovery')}.strategy",
                   f"by {strategy or 'its own choice'} SkyPilot may start the task again on a machine that "
                   "is wrong", f"set it to {wanted}")


def spot_flag_missing(part: TaskPart) -> Iterator[Found]:
    """Without the flag Azure and GCP rent on demand, at a price that nobody expects (skypilot#4406)."""
    for machine in part.machines("azure", "gcp"):
        if "(spot)" in machine.env(Env.OFFER) and not machine.values.get("use_spot"):
            yield (machine.where("use_spot"),
                   f"the plan counts on a spot machine, and without use_spot {machine.cloud} rents on-demand",
                   "set spot: true on the candidate")


def geforce_on_azure_or_gcp(part: TaskPart) -> Iterator[Found]:
    """Azure and GCP have no GeForce card: SkyPilot would look for one in vain."""
    for machine in part.machines("azure", "gcp"):
        for name in filter(_GEFORCE.match, machine.gpus):
            yield (machine.where("accelerators"), f"{machine.cloud} has no {name}",
                   "rent it on vast, or choose a card for data centres (L4, A100-80GB, H100)")


def on_demand_h100_on_gcp(part: TaskPart) -> Iterator[Found]:
    """GCP sells one, two or four H100 as spot (or flex-start) only; on demand there are eight."""
    for machine in part.machines("gcp"):
        number = machine.gpus.get("H100", 0)
        if number in (1, 2, 4) and not machine.values.get("use_spot"):
            yield (machine.where("accelerators"), f"gcp sells H100:{number:g} only as spot",
                   "set spot: true on the candidate, or gpu to H100:8")


def old_cuda_image(part: TaskPart) -> Iterator[Found]:
    """RTX 50 and all else of Blackwell needs CUDA 12.8: with an older image no kernel runs on it."""
    for machine in part.machines():
        card = next(filter(_NEEDS_CUDA_12_8.match, machine.gpus), None)
        cuda = cuda_of(str(machine.values.get("image_id")))
        if card and cuda and cuda < (12, 8):
            yield (machine.where("image_id"),
                   f"its CUDA {cuda[0]}.{cuda[1]} has no kernels for a {card}, which needs 12.8",
                   f"set image to {IMAGE} on the candidate")


def old_cuda_torch(part: TaskPart) -> Iterator[Found]:
    """A torch of a CUDA before 12.8 has no kernels for Blackwell, whatever the image has."""
    cuda = cuda_of(part.env(Env.TORCH_INDEX))
    for machine in part.machines():
        card = next(filter(_NEEDS_CUDA_12_8.match, machine.gpus), None)
        if card and cuda and cuda < (12, 8):
            yield (f"envs.{Env.TORCH_INDEX}",
                   f"torch of CUDA {cuda[0]}.{cuda[1]} has no kernels for a {card}, which needs 12.8",
                   "set torch_index of the candidate to one of CUDA 12.8 or newer, or to null")


def override_in_candidate(part: TaskPart) -> Iterator[Found]:
    """The key `_cluster_config_overrides` loads, but is private to SkyPilot: any release may drop it."""
    key = "_cluster_config_overrides"
    for machine in part.machines():
        if key in machine.values:
            yield (machine.where(key), "is private to SkyPilot, which may drop it without a word",
                   "use the document's config, with one candidate per cloud")


def remote_identity(part: TaskPart) -> Iterator[Found]:
    """SkyPilot refuses remote_identity in a task for Vast and GCP; its own config file takes it."""
    for cloud in (VAST, "gcp"):
        settings = part.block("config").get(cloud)
        if isinstance(settings, dict) and "remote_identity" in settings:
            yield (f"config.{cloud}.remote_identity", "SkyPilot refuses this key in a task",
                   f"set {cloud}.remote_identity in the API server's ~/.sky/config.yaml")


def cached_mount(part: TaskPart) -> Iterator[Found]:
    """MOUNT_CACHED uploads in order and flushes when the job ends: the newest checkpoint can be lost."""
    for mount in part.mounts():
        if mount.mode == "MOUNT_CACHED" and not part.machines(VAST):
            yield (mount.place,
                   "MOUNT_CACHED uploads late, so that a machine which is taken back loses the newest files",
                   "use mode COPY for what is read; the trainer uploads checkpoints itself")


def relative_source(part: TaskPart) -> Iterator[Found]:
    """A relative source of a bucket is read from the folder in which SkyPilot's API server was started."""
    for mount in part.mounts():
        for source in filter(_LOCAL_PATH.match, mount.sources):
            yield (f"{mount.place}.source",
                   f"{source} is relative, and SkyPilot's API server looks for it where it was started",
                   "write the absolute path")


def copy_past_endpoint(part: TaskPart) -> Iterator[Found]:
    """COPY runs `aws s3 sync` on the node, which is not told a store's own endpoint and asks Amazon."""
    store = part.env(Env.STORE)
    for mount in part.mounts():
        if any(source.startswith("s3://") and (_has_endpoint(source) or _has_endpoint(store)
               and urlsplit(source).netloc == urlsplit(store).netloc) for source in mount.sources):
            yield (mount.place,
                   "is copied by `aws s3 sync`, which asks Amazon for it and not the store's endpoint",
                   "leave it out: the trainer reads its store itself")


def secret_in_envs(part: TaskPart) -> Iterator[Found]:
    """Envs are stored with the run and shown in the clear, by SkyPilot as well."""
    for key, value in part.block("envs").items():
        if isinstance(value, str) and value and (_SECRET_NAME.search(key) or looks_secret(value)):
            yield (f"envs.{key}", "looks like a secret, and envs are stored and shown in the clear",
                   "keep keys in the environment or the cloud's own login, never in a task")


def secret_with_value(part: TaskPart) -> Iterator[Found]:
    """A task is kept in the run's folder as it is: a secret that has a value there is one no more."""
    for key, value in part.block("secrets").items():
        if value:
            yield (f"secrets.{key}", "has its value in the task, which the run's folder keeps in the clear",
                   "take it out and set it in the environment of the launch")


def number_in_envs(part: TaskPart) -> Iterator[Found]:
    """YAML reads 1:30 as 90 and no as false: only text reaches a node as it was written."""
    for key, value in part.block("envs").items():
        if not isinstance(value, str) and value is not None:
            yield f"envs.{key}", f"is {value!r}, and only text travels unchanged", "put it in quotes"


def unknown_price(part: TaskPart) -> Iterator[Found]:
    """A node counts its own money; without a price it cannot stop at the cap."""
    for machine in part.machines():
        if machine.told.get(Env.PRICE) == "":
            zero = "" if machine.cloud in _RENTED else " (0 where nobody pays)"
            yield (machine.env_place(Env.PRICE),
                   "the price is not known, so the run cannot stop itself at its cap",
                   f"say it{zero}: --set hardware.train.N.price_usd_per_hour=USD, of a bid "
                   "bid_usd_per_hour; N counts the recipe's candidates from 0; hardware.bench.N likewise")


def store_not_set(part: TaskPart) -> Iterator[Found]:
    """Without a store there is no place for checkpoints, and a run would end where its machine does."""
    if part.env(Env.STORE) == NO_STORE:
        yield (f"envs.{Env.STORE}", "no store is set, so checkpoints have no place",
               "ldlm init --store s3://BUCKET/PREFIX (or gs://, az://), or add --store URL")


def file_store_on_rented(part: TaskPart) -> Iterator[Found]:
    """A file store on a rented machine dies with it; on Slurm and Kubernetes it may be a shared disk."""
    if part.env(Env.STORE).startswith("file:") and part.machines(*_RENTED):
        yield (f"envs.{Env.STORE}", "a file store on a rented machine is lost with it",
               "set store to object storage: s3://, gs:// or az://")


def _has_endpoint(url: str) -> bool:
    return bool(parse_qs(urlsplit(url).query).get("endpoint"))
