"""Which of the places that a task may run in this machine is: its price is what the budget is counted by.

No torch. Only a task with several candidates asks; see `trainer.contract.TaskOffer`.
"""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation

from trainer.contract import ConfigError, Env, TaskOffer
from trainer.machine import Gpu, cards_of, cluster_info, visible_gpus
from trainer.metadata import is_spot

_AS_SKYPILOT_SAYS = {"k8s": "kubernetes"}
_RENDERED = "start it through `ldlm launch`, which renders the task that tells it"


def own_envs(environ: Mapping[str, str], spot: Callable[[str], bool | None] = is_spot) -> dict[str, str]:
    """What the task's envs should say on this machine; nothing where they say it, or there is one candidate.

    A candidate is known by the place that SkyPilot names, then by its GPUs, then by whether the machine can
    be taken back. Where that leaves several, or none, the dearest of them counts: a cap must not be passed.

    Args:
        environ: Of this process.
        spot: Asks a cloud whether this machine can be taken back.

    Raises:
        ConfigError: The candidates cannot be read, or not one has a price.
    """
    if not (text := environ.get(Env.OFFERS)):
        return {}
    try:
        offers = TaskOffer.read_all(text)
        prices = [Decimal(price) for offer in offers if (price := {**environ, **offer.envs}.get(Env.PRICE))]
    except (ValueError, InvalidOperation) as error:
        raise ConfigError(f"the candidates cannot be read: {error}", place=Env.OFFERS,
                          fix=_RENDERED) from error
    if not prices:
        raise ConfigError("no candidate has a price, so the run could not stop at its cap", place=Env.OFFERS,
                          fix=_RENDERED)

    def price(offer: TaskOffer) -> Decimal:
        return Decimal({**environ, **offer.envs}.get(Env.PRICE) or max(prices))

    own = max(_candidates(offers, environ, spot), key=price)
    return {**own.envs, Env.PRICE: str(price(own))}


def _candidates(offers: Sequence[TaskOffer], environ: Mapping[str, str],
                spot: Callable[[str], bool | None]) -> Sequence[TaskOffer]:
    """Those that this machine may be, as far as can be told."""
    info, cards = cluster_info(environ), visible_gpus()
    found = _narrowed(offers, lambda offer: _is_place(offer.infra, info))
    found = _narrowed(found, lambda offer: _has_gpus(cards, {**environ, **offer.envs}.get(Env.GPU, "")))
    if len({offer.spot for offer in found}) == 1:
        return found
    is_spot_machine = spot(info.get("cloud", ""))
    return found if is_spot_machine is None else _narrowed(found, lambda offer: offer.spot == is_spot_machine)


def _narrowed(offers: Sequence[TaskOffer], fits: Callable[[TaskOffer], bool]) -> Sequence[TaskOffer]:
    """Those that fit; all of them if none does, for this machine is paid for all the same."""
    return [offer for offer in offers if fits(offer)] or offers


def _is_place(infra: str, info: Mapping[str, str]) -> bool:
    """True if `gcp/us-central1` holds the place that SkyPilot names; what it does not name may be any."""
    parts = [part.lower() for part in infra.split("/")]
    parts[0] = _AS_SKYPILOT_SAYS.get(parts[0], parts[0])
    return all(part in ("*", info.get(key, part))
               for key, part in zip(("cloud", "region", "zone"), parts, strict=False))


def _has_gpus(cards: Sequence[Gpu], gpu: str) -> bool:
    model, _, count = gpu.partition(":")
    return not gpu or len(cards_of(cards, model)) >= int(count or 1)
