"""`ldlm data prepare --nodes N`: a text prepared by the nodes of a SkyPilot task, which are all here.

For a cloud the task is planned, checked and printed.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from launcher import console
from launcher.carry_out import ask, end_interrupted
from launcher.errors import EngineError, NoOfferError, StoreError, UsageError
from launcher.infra import read_infra
from launcher.lint import lint
from launcher.local_nodes import run_nodes
from launcher.offers import Offer
from launcher.recipe import checkout_folder
from launcher.regions import known_region
from launcher.render import CPUS, Task, render_prepare
from launcher.runs import default_store_url
from launcher.settings import usual_store_url
from trainer.aws import complete_address
from trainer.contract import SHARDS, Env
from trainer.prepare_options import read_options
from trainer.store import open_store, store_url
from trainer.text_files import HUB, PYTHON_DOCS, file_sizes, find_files, is_local, text_bytes

_CLOUDS = ("vast", "azure", "gcp")
_TOKENS_PER_S = 1.5e6  # of a machine (measured: MiniLM's tokenizer on two x86 cores)
_BYTES_PER_TOKEN = 4.0  # (measured: the same on English in JSON Lines)
_PYTHON_DOCS_BYTES = 2_200_000


@dataclass(frozen=True)
class NodesProposal:
    """What the user is asked to approve, and the very task that is then carried out.

    Attributes:
        options: As typed; see `trainer.prepare_options`.
        out: Where the shards go, for people.
        num_bytes: Of text, about; None when it is not known before it is read.
    """

    options: Namespace
    offer: Offer
    out: str
    num_bytes: int | None
    task: Task


def prepare_on_nodes(arguments: Sequence[str]) -> None:
    """Plan, show, ask, carry out, or print the task. Raises as `propose` and `carry_out`, and Refused."""
    proposal = propose(arguments)
    if proposal.options.dry_run:
        show_problems(proposal)
        print(proposal.task.text, end="")
        return
    show_plan(proposal)
    check_usable(proposal)
    ask("Start it?", proposal.options.yes)
    try:
        carry_out(proposal)
    except KeyboardInterrupt:
        end_interrupted("interrupted: what is finished is kept, the same command goes on from there")


def propose(arguments: Sequence[str]) -> NodesProposal:
    """Render the task that a command line asks for. Starts nothing and writes nothing.

    Raises:
        UsageError: Nodes could not reach what it names.
        ConfigError: There is no such text.
    """
    options = read_options(arguments)
    offer = _offer(options.infra, options.nodes or 1)
    store = usual_store_url() or (default_store_url() if offer.is_local else "")
    store = store_url(store) if options.out.startswith(SHARDS) else ""
    if not offer.is_local:
        _check_reachable(options, store)
    store, source, to = (text if offer.is_local else complete_address(text)
                         for text in (store, options.source, options.out))
    envs = {"LDLM_STORE": store, "LDLM_SOURCE": source, "LDLM_TOKENIZER": options.tokenizer,
            "LDLM_REVISION": options.revision or "", "LDLM_OUT": to,
            "LDLM_TEXT_KEY": options.text_key, "LDLM_HELDOUT": str(options.heldout),
            "LDLM_PROCESSES": str(options.processes or "")}
    template = (checkout_folder() / "sky" / "prepare.yaml").read_text(encoding="utf-8")
    out = f"{options.out} in {store}" if store else options.out
    return NodesProposal(options, offer, out, _num_bytes(options.source),
                         render_prepare(template, offer, envs, checkout_folder()))


def show_plan(proposal: NodesProposal) -> None:
    """What would run where, and how long it takes."""
    offer, size = proposal.offer, proposal.num_bytes
    kind = f"{CPUS} CPUs on {offer.infra} ({'spot' if offer.spot else 'on-demand'})"
    nodes = f"{offer.num_nodes}, all on this machine" if offer.is_local else f"{offer.num_nodes} x {kind}"
    text = f"about {console.data_size(size)} of text" if size else "its size is not known yet"
    console.answer_facts([
        ("nodes", nodes),
        ("source", f"{proposal.options.source} ({text})"),
        ("out", proposal.out),
        ("time", _time(size, 1 if offer.is_local else offer.num_nodes)),
        ("price", "nothing is rented" if offer.is_local else "not known here: no cloud is asked for prices")])


def show_problems(proposal: NodesProposal) -> None:
    """Known traps in the task, as talk."""
    if problems := _problems(proposal):
        with console.aside():
            console.answer("it would not be started now:")
            console.answer_reasons(problems)


def check_usable(proposal: NodesProposal) -> None:
    """Refuse what could not be carried out.

    Raises:
        EngineError: Nodes are wanted that this command does not rent.
        NoOfferError: The task holds a known trap.
    """
    for found in _problems(proposal):
        raise found
    if not proposal.offer.is_local:
        raise EngineError(f"ldlm does not rent the nodes that prepare a text on {proposal.offer.infra}",
                          place=f"--infra {proposal.offer.infra}",
                          fix="leave out --infra and N nodes here do it; or print the task, for SkyPilot: "
                              "--dry-run > prepare.yaml; .venv/bin/sky jobs launch prepare.yaml")


def _problems(proposal: NodesProposal) -> list[NoOfferError]:
    return [NoOfferError(found.problem, place=found.place, fix=found.fix.replace("num_nodes", "--nodes"))
            for found in lint(proposal.task)]


def carry_out(proposal: NodesProposal) -> None:
    """Run the task's nodes here, to their end. Raises EngineError, KeyboardInterrupt."""
    run_nodes(proposal.task.documents()[1], console.talk)
    nodes = proposal.offer.num_nodes
    console.answer(f"prepared by {nodes} node{'s' * (nodes > 1)}: {proposal.out}", "title")


def _offer(infra: str, num_nodes: int) -> Offer:
    infra = known_region(read_infra(infra))
    cloud = infra.partition("/")[0]
    if cloud not in ("local", *_CLOUDS):
        raise UsageError(f"text is not prepared on {infra}", place="--infra",
                         fix=f"use local, or one of {', '.join(_CLOUDS)}")
    return Offer(infra=infra, gpu=None, num_gpus=0, num_nodes=num_nodes, cpu_ranks=1,
                 # What is taken back loses a unit or two; Vast's interruptible machines want a bid.
                 spot=cloud in ("azure", "gcp"), price_usd_per_hour=None, on_demand_usd_per_hour=None,
                 price_is_simulated=False, bid_usd_per_hour=None, image=None, disk_gib=100,
                 seen_at=datetime.now(UTC))


def _check_reachable(options: Namespace, store: str) -> None:
    here = "is on this machine, where rented nodes cannot reach it"
    if is_local(options.source):
        raise UsageError(f"{options.source} {here}", place="SOURCE",
                         fix="copy it to object storage and name that (s3://, gs://, az://), or name a "
                             "dataset (hf://owner/name)")
    if options.out.startswith(SHARDS) and not store:
        raise UsageError(f"{options.out} lies in the store, but which one is not said", place="--out",
                         fix=f"set {Env.STORE} to object storage (s3://, gs://, az://), or give --out a URL")
    if (store or options.out).startswith("file:"):
        raise UsageError(f"{store or options.out} {here}", place=Env.STORE if store else "--out",
                         fix="name object storage: s3://, gs:// or az://")
    if os.path.isabs(options.tokenizer):
        raise UsageError(f"{options.tokenizer} {here}", place="--tokenizer",
                         fix="name it as the Hub does (owner/name), or prepare here: --infra local")


def _num_bytes(source: str) -> int | None:
    if source == PYTHON_DOCS:
        return _PYTHON_DOCS_BYTES
    if source.startswith(HUB):
        return None
    with suppress(StoreError):  # the nodes may have a key that this machine lacks
        found = find_files(source)
        return sum(text_bytes(file_sizes(open_store(found.address), found.names)).values())
    return None


def _time(num_bytes: int | None, num_machines: int) -> str:
    rate = f"{_TOKENS_PER_S / 1e6:g} M tokens/s a machine, measured on two cores"
    if num_bytes is None:
        return f"not known; {rate}"
    tokens = num_bytes / _BYTES_PER_TOKEN
    words = f"{tokens / 1e9:.3g} B" if tokens >= 1e9 else f"{tokens / 1e6:.3g} M"
    seconds = tokens / _TOKENS_PER_S / num_machines
    return f"about {console.rough_duration(max(1.0, seconds))} for ~{words} tokens, and set-up ({rate})"
