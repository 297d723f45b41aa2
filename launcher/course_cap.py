"""What a policy has decided, as far as the cap of the run pays for it. Pure: it replays as decisions do.

No policy knows of a cap. The nodes hold it whatever is decided here; here it is looked ahead, so that hours
on demand do not bring a run to where even spot could not finish it any more.
"""

from dataclasses import replace

from launcher.policy import Action, Decision, Setting, Situation


def within_cap(found: Decision, setting: Setting, now: Situation, left_usd: float | None) -> Decision:
    """On demand is left out where the rest is paid on spot, and after one more tick of it would not be: the
    cheapest spot that is there is taken, else waited for. What is short of the end otherwise, is said.

    Args:
        found: What the policy decides.
        left_usd: Of the cap, for training; None: it is not known.
    """
    if left_usd is None or found.action is Action.WAIT:
        return found
    needed_usd = _to_end_usd(setting, now, found.action, found.place)
    if needed_usd <= left_usd:
        return found
    if found.action is Action.SPOT:
        return replace(found, reason=f"{found.reason}; to the end ${needed_usd:.2f}, the cap leaves "
                                     f"${max(0.0, left_usd):.2f}")
    short = f"on demand to the end is ${needed_usd:.2f}, the cap leaves ${max(0.0, left_usd):.2f}"
    on_spot_usd = min(_to_end_usd(setting, now, Action.SPOT, index) for index in range(len(now.places)))
    if _after_tick_usd(setting, now) <= left_usd or left_usd < on_spot_usd:
        return replace(found, reason=f"{found.reason}; {short}")
    places = [index for index, place in enumerate(now.places) if place.is_up]
    if not places:
        return Decision(Action.WAIT, None, f"{short}: it waits for spot")
    place = min(places, key=lambda index: _to_end_usd(setting, now, Action.SPOT, index))
    return Decision(Action.SPOT, place, f"{short}: spot at ${now.places[place].spot_usd_per_hour:.2f}/h")


def on_demand_usd(setting: Setting, now: Situation) -> float:
    """What it costs to the end from now on."""
    return _to_end_usd(setting, now, Action.ON_DEMAND, None)


def _to_end_usd(setting: Setting, now: Situation, action: Action, place: int | None) -> float:
    """Undisturbed: what is lost with machines comes on top."""
    is_held = now.held is action and now.place == place
    hours = now.work_left_h + (now.overhead_left_h if is_held else setting.overhead_h)
    if place is None:
        return hours * setting.on_demand_usd_per_hour
    return hours * now.places[place].spot_usd_per_hour + now.places[place].move_usd


def _after_tick_usd(setting: Setting, now: Situation) -> float:
    """A tick on demand, and the rest on the cheapest spot."""
    start_h = now.overhead_left_h if now.held is Action.ON_DEMAND else setting.overhead_h
    left_h = max(0.0, now.work_left_h - max(0.0, setting.tick_h - start_h))
    rest = min((left_h + setting.overhead_h) * place.spot_usd_per_hour + place.move_usd
               for place in now.places)
    return setting.tick_h * setting.on_demand_usd_per_hour + (rest if left_h else 0.0)
