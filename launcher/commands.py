"""What each command does, without saying how it looks: plan, launch, resume, find a run."""

import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import chain

from launcher import console
from launcher.ask_market import with_market
from launcher.benchmarks import MEASURED, read_benchmarks
from launcher.canary import own_preemption
from launcher.candidates import choose
from launcher.engine import ALIVE, EnginePhase
from launcher.engines import (
    cannot_tell,
    check_is_over,
    check_server,
    engine_at,
    is_hidden,
    sky_engine,
    state_of,
)
from launcher.errors import (
    EngineError,
    RecipeError,
    RunRecordError,
    UsageError,
)
from launcher.estimate import Done, case_of
from launcher.git_state import git_sha
from launcher.history import Past, done_so_far, newest_limits, past_of, recorded_recipe
from launcher.kept import check_has_checkpoint
from launcher.lint_rules import looks_secret
from launcher.lives import with_seen
from launcher.local_engine import LocalEngine
from launcher.local_setup import setup_warnings
from launcher.month import hold_month, month_warning
from launcher.node_secrets import own_keys_warning
from launcher.offers import make_offers, probe_machine
from launcher.offers_file import too_old
from launcher.paying import payment_of, wallets_now
from launcher.plan import Plan, best_plan
from launcher.preempt_at import PreemptAt
from launcher.price_sources import price_warnings, prices_of
from launcher.proposal import Proposal
from launcher.recipe import HIGHEST_LIMIT, LIMIT_OPTIONS, Recipe, check_files, checkout_folder, load_recipe
from launcher.refusals import market_refusals
from launcher.run_record import (
    RunRecord,
    RunView,
    create_record,
    ending_words,
    load_record,
    look_at,
)
from launcher.run_text import look_at_text
from launcher.run_weights import look_for_mirrors
from launcher.runs import check_run_id, default_store_url, usual_store
from launcher.settings import (
    api_server,
    controller_usd_per_hour,
    read_settings,
    settings_path,
    usual_store_url,
)
from launcher.store_keys import Needs
from trainer.aws import complete_address
from trainer.contract import Document, Name, Outcome
from trainer.encoder_shape import encoder_shape
from trainer.run_folder import RunFolder
from trainer.store import Store, may_exist, open_store, store_url

# Seen in the lab: SkyPilot 0.14.1 hands a task's variables to srun as words of its command.
_KEYS_ON_SLURM = ("SkyPilot shows the store's keys in the process lists of a Slurm cluster's nodes: where "
                  "others work there too, take a store on its shared disk (file://) or keys that soon expire")
_STAY_AWAKE = ("while this machine sleeps or is off, no run is recovered; what never sleeps: "
               "ldlm controller up --ssh HOST --usd-per-hour PRICE")


@dataclass(frozen=True)
class PlanOptions:
    """What the command line may change of a recipe."""

    infra: str | None = None
    store: str | None = None
    run_id: str | None = None
    max_cost: str | None = None
    deadline: str | None = None
    max_hours: str | None = None
    overrides: Sequence[str] = ()
    offers: str | None = None  # a file of them; None: whoever names prices is asked

    def limits(self) -> dict[str, Decimal | datetime | None]:
        """What --max-cost, --max-hours and --deadline say, by their names in a recipe. Raises UsageError."""
        given = (("max_cost_usd", "dollars", self.max_cost), ("max_hours", "hours", self.max_hours))
        found: dict[str, Decimal | datetime | None] = {
            name: positive(LIMIT_OPTIONS[name], unit, text) for name, unit, text in given if text is not None}
        if self.deadline is None:
            return found
        at = _moment(self.deadline)
        hours = None if at else positive("--deadline", "hours", self.deadline)
        return {**found, "deadline_hours": hours, "deadline": at}  # the other is replaced as well


def _moment(text: str) -> datetime | None:
    """A date and time, UTC where it does not say; None: it is something else, such as hours."""
    if "-" not in text[1:]:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is neither hours nor a date and time", place="--deadline",
                         fix="write it like --deadline 12.5, or --deadline 2026-12-01T08:00 (UTC)") from error
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def positive(option: str, unit: str, text: str) -> Decimal:
    """An amount that was typed. Raises UsageError."""
    # The bound keeps a date within the calendar, and a slip of the finger from passing for a limit.
    try:
        if 0 < (value := Decimal(text)) <= HIGHEST_LIMIT:
            return value
    except InvalidOperation:
        pass
    raise UsageError(f"{text!r} is no number of {unit}", place=option,
                     fix=f"write a number above 0 and up to {HIGHEST_LIMIT:,}, such as {option} 12.5")


def propose(recipe_name: str, options: PlanOptions) -> Proposal:
    """Plan a recipe and render its task. Spends nothing and writes nothing.

    Raises:
        RecipeError, ConfigError, NoOfferError, StoreError: See the message.
    """
    recipe, now = _load_recipe(recipe_name, options), datetime.now(UTC)
    return _propose(recipe, options, options.run_id or _new_run_id(recipe.name, now), now)


def _load_recipe(name: str, options: PlanOptions) -> Recipe:
    """A recipe under the user's settings and what is typed."""
    limits = options.limits()
    recipe = load_recipe(name, options.overrides, limits)
    said = read_settings().overrides(recipe.limits.max_cost_usd)
    return load_recipe(name, options.overrides, limits, said, str(settings_path())) if said else recipe


def _propose(recipe: Recipe, options: PlanOptions, run_id: str, now: datetime,
             done: Done | None = None) -> Proposal:
    check_run_id(run_id, "--run-id")
    machine = probe_machine()
    candidates = choose(recipe, options.infra, machine)
    prices = prices_of(chain(*candidates.values()), options.offers, now)
    offers = {document: make_offers(found, machine, now, prices.offers)
              for document, found in candidates.items()}
    train = offers[Document.TRAIN][0]
    url = options.store or usual_store_url() or recipe.store
    if url is None and train.is_local:
        url = default_store_url()
    if url is not None:
        recipe = recipe.model_copy(update={"store": store_url(url)})
    if not train.is_local:
        recipe = _as_nodes_find_it(recipe)
    check_keyless(recipe.store or "")
    past = past_of(open_store(recipe.store), now) if recipe.store and may_exist(recipe.store) else Past()
    offers = {document: tuple(with_seen(one, past.sightings) for one in found)
              for document, found in offers.items()}
    try:
        shape = encoder_shape(recipe.train.token_encoder.name, checkout_folder())
        text, weights = look_at_text(recipe), look_for_mirrors(recipe)
        price = None if train.is_local else controller_usd_per_hour()
        wallets, unknown = ([], []) if train.is_local else wallets_now(recipe.store, now)
        case = case_of(text.priced(recipe), shape, offers, past.speeds, done, weights.mirrors, price)
        benchmarks, unread = read_benchmarks(checkout_folder() / MEASURED)
        case = replace(case, wallets=wallets, benchmarks=benchmarks, text_tokens=text.num_tokens)
        plan = best_plan(case, now, run_id)
    except ArithmeticError as error:
        raise RecipeError("its numbers are too large to plan with", place=recipe.place("train", "steps"),
                          fix="lower train.steps and the sizes") from error
    unlearned = (*unknown, *past.warnings, *unread)
    warnings = text.among((*plan.warnings, *weights.warnings(recipe, plan), *unlearned))
    if not train.is_local:
        warnings += (*_of_rented(recipe, plan), *price_warnings(plan, prices))
    elif not train.lacks:
        warnings += tuple(setup_warnings(checkout_folder()))
    warnings += (beside_cap,) if (beside_cap := month_warning(plan)) else ()
    stale = too_old(plan.listed, options.offers, now) if options.offers else None
    return Proposal(recipe, plan.model_copy(update={"warnings": warnings}),
                    tuple(one for one in (text.refusal, stale) if one), payment=payment_of(plan, wallets))


def _of_rented(recipe: Recipe, plan: Plan) -> Iterator[str]:
    """What a plan warns of that this machine's environment and settings decide."""
    if "slurm" in plan.clouds and not (recipe.store or "file:").startswith("file:"):
        yield _KEYS_ON_SLURM
    needs = Needs.of(plan.run_id, plan.deadline, recipe.train.data.source)
    if warning := own_keys_warning(recipe.store, os.environ, needs, plan.deadline_hours):
        yield warning
    if api_server() is None:
        yield _STAY_AWAKE


def _as_nodes_find_it(recipe: Recipe) -> Recipe:
    """With complete addresses: nodes have neither this machine's environment nor its AWS profile."""
    data = recipe.train.data
    data = data.model_copy(update={"source": complete_address(data.source)})
    return recipe.model_copy(update={"store": recipe.store and complete_address(recipe.store),
                                     "train": recipe.train.model_copy(update={"data": data})})


def submit(proposal: Proposal, preempt_at: PreemptAt | None) -> None:
    """Write the record of an approved proposal and hand its task to the engine.

    Raises:
        RunRecordError: There is a run of this id.
        EngineError: The engine cannot take it.
    """
    _check_ready(proposal, resuming=False)
    folder = RunFolder(open_store(proposal.recipe.store or ""), proposal.plan.run_id)
    create_record(folder, proposal.recipe, proposal.plan, proposal.task, datetime.now(UTC), git_sha())
    hold_month(proposal, folder)
    _hand_over(proposal, preempt_at or own_preemption(proposal.recipe))


def _hand_over(proposal: Proposal, preempt_at: PreemptAt | None,
               on_lock: Callable[[], None] | None = None) -> None:
    """Give a recorded task to the engine; an engine that refuses it leaves the record behind."""
    store = open_store(proposal.recipe.store or "")
    engine = LocalEngine() if proposal.is_local else sky_engine(store, console.talk)
    try:
        if isinstance(engine, LocalEngine):
            engine.submit(proposal.task.text, preempt_at=preempt_at, on_lock=on_lock)
        else:
            engine.submit(proposal.task.text, on_lock=on_lock)
    except EngineError as error:
        phase = engine.state(proposal.plan.run_id).phase
        if phase in ALIVE:
            raise
        raise EngineError(error.problem, place=error.place,
                          fix=f"{error.fix}; {left_behind(proposal, phase)}") from error


def _check_ready(proposal: Proposal, *, resuming: bool) -> None:
    """Refuse what the engine could not do, before the store says that there is a run. Starts a server."""
    if proposal.is_local:
        return
    engine = sky_engine(open_store(proposal.recipe.store or ""), console.talk)
    engine.check(proposal.task.text)
    engine.ask(proposal.plan.run_id)
    check_server(proposal.plan.clouds)
    if not proposal.markets:  # the server may not have run before
        for none in market_refusals(with_market(proposal), resuming=resuming):
            raise none


def check_keyless(url: str) -> None:
    """Refuse a store's URL with a key in it, which plan, task and record would show. Raises UsageError."""
    if looks_secret(url):
        raise UsageError("holds what looks like a key, which plan, task and record would show",
                         place="--store", fix="keep keys in the environment or in the cloud's own login")


def propose_resume(store: Store, run_id: str, options: PlanOptions) -> Proposal:
    """Plan what is left of a run, by its own recipe and the limits of its last start.

    Raises:
        RunRecordError: No such run, it has finished, it runs or may run, or its checkpoints were deleted.
        RecipeError: Its text or its encoder is not there any more, or is another.
        NoOfferError: What is left does not fit into what its cap leaves.
    """
    record, now = load_record(store, run_id), datetime.now(UTC)
    if record.outcome and record.outcome.outcome is Outcome.FINISHED and record.bench:
        raise RunRecordError(f"run {run_id} has finished: there is nothing to resume", place=record.url,
                             fix=f"see what it cost: ldlm cost {run_id}")
    state = state_of(record, store)
    check_is_over(record, state, now, if_here=f"watch it: ldlm logs -f {run_id}",
                  if_elsewhere="stop it there; two machines would spoil each other's checkpoints")
    check_has_checkpoint(store, record)
    recipe = recorded_recipe(RunFolder(store, run_id))
    check_files(recipe)
    limits = newest_limits(record, recipe).changed(options.limits())
    done = done_so_far(look_at(record, state, now))
    return _propose(recipe.model_copy(update={"limits": limits}),
                    PlanOptions(infra=options.infra, store=store.address, offers=options.offers), run_id, now,
                    done)


def propose_bench(store: Store, run_id: str, options: PlanOptions) -> Proposal:
    """Plan the benchmark of a run that has none. Raises as `propose_resume`, and if it has not trained."""
    outcome = load_record(store, run_id).outcome
    if outcome is None or outcome.outcome is not Outcome.FINISHED:
        raise RunRecordError(f"run {run_id} has not finished training", place=f"{store.url}/{run_id}",
                             fix=f"continue it, its benchmark comes by itself: ldlm resume {run_id}")
    return propose_resume(store, run_id, options)


def resume(proposal: Proposal, preempt_at: PreemptAt | None = None) -> None:
    """Continue a run under the limits of the proposal."""
    _check_ready(proposal, resuming=True)
    folder = RunFolder(open_store(proposal.recipe.store or ""), proposal.plan.run_id)

    def record() -> None:
        folder.write_bytes(Name.TASK, proposal.task.text.encode())
        folder.add_event("resumed", datetime.now(UTC), task_digest=proposal.task.digest, git_sha=git_sha(),
                         infra=proposal.infra, clouds=sorted(proposal.plan.clouds),
                         limits=proposal.recipe.limits.model_dump(mode="json"), **proposal.plan.supervision)
        hold_month(proposal, folder)

    _hand_over(proposal, preempt_at, on_lock=record)


def ways_to(run_id: str) -> str:
    """What can be done with a run that is under way."""
    return f"ldlm status {run_id}, ldlm logs -f {run_id}, ldlm stop {run_id}"


def after_interrupt(proposal: Proposal) -> str:
    """What an interrupted launch has left behind, and how to find it again: one line."""
    run_id, url = proposal.plan.run_id, proposal.recipe.store or ""
    phase = engine_at(proposal.infra, open_store(url)).state(run_id).phase
    if phase in ALIVE:
        return f"no longer watching, the run goes on: {ways_to(run_id)}"
    if phase is EnginePhase.ENDED:
        return f"no longer watching, the run has ended: ldlm status {run_id}"
    if may_exist(url) and RunFolder(open_store(url), run_id).exists():
        # A task that is on its way to SkyPilot arrives without whoever sent it.
        return left_behind(proposal, phase if proposal.is_local else EnginePhase.UNKNOWN)
    return "interrupted, so nothing was done"


def left_behind(proposal: Proposal, phase: EnginePhase) -> str:
    """What became of a run that was recorded, and that no engine is known to have: one line."""
    # The engine may not have its task, so nothing else says where the run is.
    which = f"{proposal.plan.run_id} --store {shlex.quote(proposal.recipe.store or '')}"
    if phase is EnginePhase.UNKNOWN and not proposal.is_local:
        return f"whether the run is under way cannot be told now; ask again in a minute: ldlm status {which}"
    return f"the run is recorded but does not run: ldlm resume {which}, or ldlm rm {which} --all"


def resume_command(record: RunRecord) -> str:
    """What continues a run; it names the store where the run would not be found without."""
    command = f"ldlm resume {record.run_id}"
    usual = store_url(usual_store(record.run_id))
    if complete_address(usual) == complete_address(record.store_address):
        return command
    return f"{command} --store {shlex.quote(record.store_address)}"


def end_words(view: RunView) -> str:
    """The last line of a run that was watched to its end.

    Raises:
        EngineError: It did not end as it should.
        RunRecordError: Nobody can tell whether it has ended.
    """
    record, run_id = view.record, view.record.run_id
    if is_hidden(record, view.engine):
        raise cannot_tell(record, view.engine)
    if record.outcome is None:
        raise EngineError(f"run {run_id} is not supervised any more: {view.engine.detail}", place=record.url,
                          fix=f"continue it: {resume_command(record)}")
    ended = ending_words(record)
    if record.has_failed:
        raise EngineError(f"run {run_id} {ended}", place=record.url,
                          fix=record.failure_fix or f"read ldlm logs {run_id}")
    return f"run {run_id}: {ended}"


def _new_run_id(recipe_name: str, now: datetime) -> str:
    return f"{recipe_name.replace('.', '-')}-{now:%m%d-%H%M}-{secrets.token_hex(2)}"

