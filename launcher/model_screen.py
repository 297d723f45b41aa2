"""What a plan shows of its model: sizes as lines, memory as a small table. Decides nothing."""

from decimal import Decimal

from launcher import console
from launcher.cached_states import CachedStates
from launcher.fit import PLACES
from launcher.offers import Offer
from launcher.plan import Plan
from launcher.plan_sizes import CommunicationPlan, EncoderPlan, HostMemoryPlan, MemoryPlan, Sizes
from launcher.saves import SavesPlan
from launcher.starts import StartPlan
from trainer.contract import Document
from trainer.interval import minutes
from trainer.run_folder import SavePace

_GIB = 2**30
_BELOW_GIB = 0.05  # shown as 0.0, so put under "other"
_CENTS = Decimal("0.005")  # what is less is not worth a word
_SOON_S = 10  # what takes no longer is not worth a line


def model_facts(plan: Plan) -> list[tuple[str, str]]:
    """Parameters, arithmetic, the frozen encoder, a checkpoint; nothing where sizes are not known."""
    sizes = plan.sizes
    if sizes is None:
        return []
    facts = [("model", _parameter_words(sizes.parameters)), ("compute", _flops_words(sizes)),
             ("encoder", _encoder_words(sizes.encoder, has_gpu=sizes.memory is not None))]
    if sizes.communication:
        facts.append(("scaling", communication_words(sizes.communication)))
    if sizes.encoder.fetch_s or sizes.encoder.first_fetch_bytes:
        facts.append(("download", _fetch_words(sizes.encoder)))
    if sizes.encoder.loading_s > _SOON_S:
        facts.append(("loading", _loading_words(sizes.encoder)))
    if plan.cached_states:
        facts.append(("caching", states_words(plan.cached_states, plan.tokens)))
    if plan.saves:
        facts.append(("saves", _saves_words(plan.saves, plan.offers[Document.TRAIN])))
    if plan.start:
        facts.append(("starts", _start_words(plan.start)))
    return [*facts, ("host RAM", _host_words(sizes.host_memory))] if sizes.host_memory else facts


def _host_words(memory: HostMemoryPlan) -> str:
    parts = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in memory.parts.items())
    return f"~{memory.needed_gib} GiB on each node: {parts}"


def _parameter_words(parameters: dict[str, int]) -> str:
    whole, digits = sum(parameters.values()), 1 if min(parameters.values()) >= 1e7 else 2
    parts = ", ".join(f"{name.replace('_', ' ')} {number / 1e6:,.{digits}f}"
                      for name, number in parameters.items())
    return f"{whole / 1e6:,.{digits}f} M trained parameters: {parts}"


def _saves_words(saves: SavesPlan, offer: Offer) -> str:
    each = f", ~{console.dollars(saves.upload_usd)} to upload" if saves.upload_usd >= _CENTS else ""
    by_step = f" and after every {_steps(saves.every_steps)}" if saves.every_steps else ""
    return (f"{console.data_size(saves.num_bytes)} a checkpoint{each}, one every ~{minutes(saves.every_s)} "
            f"({saves.reason}){by_step}; at most {minutes(saves.lost_s)} of work are lost with a machine"
            f"{_kept_words(saves)}; {saves.upload_bytes_per_s / 1e6:.0f} MB/s to the store "
            f"{'is asked of the host' if offer.cloud == 'vast' else 'is a guess'}")


def _steps(number: int) -> str:
    return "step" if number == 1 else f"{number:,} steps"


def _kept_words(saves: SavesPlan) -> str:
    usd = saves.kept_usd_per_month or Decimal(0)
    if usd < _CENTS:
        return ""
    size = console.data_size(saves.num_kept * saves.num_bytes)
    return f"; {saves.num_kept} stay, {size}, {console.dollars(usd, 2)} a month until ldlm rm"


def pace_words(pace: SavePace) -> str:
    """How a run saves now, as its saves are measured."""
    return (f"{console.data_size(pace.num_bytes)} a checkpoint, durable in {minutes(pace.save_s)}, one every "
            f"{minutes(pace.interval_s)}; at most {minutes(pace.lost_s)} of work are lost with this machine")


def _flops_words(sizes: Sizes) -> str:
    flops = sizes.flops_per_token
    unit, word = (1e9, "GFLOP") if flops.total >= 1e9 else (1e6, "MFLOP")
    in_all = f"{sizes.flops:.1e}".replace("e+", "e")
    return (f"{flops.total / unit:.1f} {word} a token, {flops.encoder / unit:.1f} of them the encoder's; "
            f"{in_all} in all")


def communication_words(told: CommunicationPlan) -> str:
    """What each GPU sends in a step, and what waiting for the others leaves of its speed."""
    parts = {"gradients": told.gradient_bytes, "weights": told.weight_bytes, "encoder": told.encoder_bytes}
    sent = ", ".join(f"{name} {console.data_size(size)}" for name, size in parts.items() if size)
    low, high = told.efficiency_range
    return (f"each of {told.num_ranks} GPUs sends {console.data_size(told.total_bytes)} a step ({sent}); "
            f"efficiency ~{told.efficiency:.0%} ({low:.0%} - {high:.0%}; model)")


def _encoder_words(encoder: EncoderPlan, has_gpu: bool) -> str:
    where = f" {PLACES[encoder.placement]}" if has_gpu else ""
    return f"{encoder.name}, {console.data_size(encoder.num_bytes)} in {encoder.weights}{where}"


def states_words(states: CachedStates, run_tokens: int) -> str:
    """From how many passes over the text on it would pay to keep the encoder's states, or why never."""
    reuse, saved = states.reuse_usd, states.saved_usd
    if not saved:
        found = "never pays: fetching one takes longer than encoding it"
    elif states.pays_from is None:
        found = (f"never pays: fetching and keeping them costs {console.dollars(reuse)} an epoch, "
                 f"{reuse / saved:.2g} times what encoding does")
    else:
        found = (f"pays from {states.pays_from:,} epochs x runs (this run: "
                 f"{run_tokens / states.num_tokens:.2g}): {console.dollars(reuse)} an epoch instead of "
                 f"{console.dollars(saved)}, and {console.dollars(states.write_usd)} once")
    return (f"its states in the store, {states.bytes_per_token / 1e3:.1f} kB a token, "
            f"{console.data_size(states.num_bytes)}, {found} (not built)")


def _fetch_words(encoder: EncoderPlan) -> str:
    rate = encoder.fetch_bytes_per_s
    what = (f"{console.data_size(encoder.source_bytes)} in {encoder.source_weights} from "
            f"{'a mirror in the store' if encoder.source == 'mirror' else 'the Hub'}")
    guess = f"(guess: {rate / 1e6:.0f} MB/s)"
    if encoder.first_fetch_bytes:
        took = console.rough_duration(encoder.first_fetch_bytes / rate)
        return f"{what} at the first start, unless they are here: ~{took} {guess}, not counted below"
    price = "" if encoder.fetch_usd is None else f", ~{console.dollars(encoder.fetch_usd)}"
    return f"{what} at each start: ~{console.rough_duration(encoder.fetch_s)}{price} {guess}"


def _loading_words(encoder: EncoderPlan) -> str:
    packed = f" and packed as {encoder.weights}" if encoder.weights != encoder.source_weights else ""
    return (f"{console.data_size(encoder.source_bytes)} read{packed} at each start: "
            f"~{console.rough_duration(encoder.loading_s)} (guess)")


def _start_words(start: StartPlan) -> str:
    parts = {"node": start.node_s, "encoder": start.fetch_s + start.loading_s,
             "statistics": start.statistics_s}
    told = ", ".join(f"{name} {console.rough_duration(seconds)}" for name, seconds in parts.items()
                     if seconds >= _SOON_S or name == "node")
    again = f"~{console.rough_duration(start.again_s)} after a loss"
    if start.checkpoint_s and start.checkpoint_s >= _SOON_S:
        again += f", its checkpoint {console.rough_duration(start.checkpoint_s)}"
    first = console.rough_duration(start.first_s)
    return f"first step ~{first} after a machine is there: {told}; {again} (guess)"


def show_memory(memory: MemoryPlan) -> None:
    """A table with one column for each GPU of a rank; its parts add up to what it needs."""
    columns = [memory.parts, *([memory.encoder_gpu] if memory.encoder_gpu else [])]
    needs = [memory.needed_bytes, *([memory.encoder_needed_bytes] if memory.encoder_gpu else [])]
    names = [name for name in dict.fromkeys(name for column in columns for name in column)
             if max(column.get(name, 0) for column in columns) >= _BELOW_GIB * _GIB]
    rows = [[name, *(f"{column[name] / _GIB:.1f}" if name in column else "" for column in columns)]
            for name in names]
    rest = [need - sum(column.get(name, 0) for name in names)
            for need, column in zip(needs, columns, strict=True)]
    rows.append(["CUDA, allocator, small parts", *(f"{size / _GIB:.1f}" for size in rest)])
    headings = ["GiB"] if len(columns) == 1 else ["GiB", "next GPU"]
    console.answer_table([f"memory of a GPU, {memory.moment}", *headings], rows,
                         right=range(1, len(headings) + 1),
                         total=[f"needed, of {memory.gpu_gib:g}", *(f"{need / _GIB:.1f}" for need in needs)])
    for stage, need in memory.needed_bytes_by_stage.items():
        if stage != memory.zero_stage:
            console.answer(f"  under zero_stage {memory.zero_stage}; {need / _GIB:.1f} under {stage}",
                           "quiet")
