"""What SkyPilot 0.14.1 says when it refuses or fails, in our words and with what to do about it. Pure.

Patterns are of SkyPilot's own texts; the tests have its own code say them. The first that is found counts, so
a cause stands before what follows from it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from launcher.errors import EngineError
from launcher.registry_login import CHECK_IMAGE

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CLASS = re.compile(r"^\[?(?:[A-Za-z_]\w*\.)+(?:\w+Error|\w+Exception)\]?:? ")


@dataclass(frozen=True)
class Explained:
    """One of SkyPilot's texts, understood."""

    problem: str
    fix: str


@dataclass(frozen=True)
class _Case:
    """What a text means. Both answers are templates over the pattern's named groups."""

    pattern: str
    problem: str
    fix: str
    also: Callable[[str], dict[str, str]] = lambda text: {}


def _near(text: str) -> dict[str, str]:
    """What SkyPilot proposes instead of a region, zone or number of GPUs."""
    found = re.search(r"(?:Did you mean one of these: '(.*?)'\?|offered accelerators: \[(.*?)\])", text)
    words = (found[1] or found[2]).replace("'", "") if found else ""
    return {"near": f"did you mean {words.replace(', ', ' or ')}? Else " if words else ""}


_CASES = (
    _Case(r"Invalid (?P<kind>region|zone) '(?P<name>[^']*)'", "SkyPilot knows no {kind} {name} of this cloud",
          "{near}leave the {kind} out of infra, and SkyPilot looks in all of them", _near),
    _Case(r"Cloud access is not set up", "SkyPilot has no cloud enabled",
          "see what is missing: .venv/bin/sky check"),
    _Case(r"requires (?P<clouds>[\w ,]+) which (?:is|are) not enabled", "SkyPilot has {clouds} not enabled",
          "see what is missing: .venv/bin/sky check; or choose another cloud: --infra"),
    _Case(r"does not contain any[^:]*request:\s+(?P<wanted>.*), max_cost=\$(?P<cap>[\d.]+)/hr",
          "SkyPilot's catalogs have nothing for {wanted}) up to ${cap} an hour a machine",
          "pay more: --set hardware.train.N.price_usd_per_hour=USD, of all nodes, N counting the recipe's "
          "candidates from 0; or choose another region or cloud: --infra"),
    _Case(r"does not contain any instances satisfying the request:\s+(?P<wanted>.*)\.",
          "no cloud that is enabled offers {wanted}",
          "{near}choose other GPUs or less memory: --set hardware.train.0.gpu=NAME:NUMBER", _near),
    _Case(r"on cloud (?P<cloud>\w+) due to invalid cloud credentials: (?:[\w.]+: )?(?P<why>.*)",
          "{cloud} does not take the credentials: {why}", "sign in again, then .venv/bin/sky check"),
    _Case(r"Found no quota for (?P<what>\S+ [\w-]+) instances in region (?P<where>\S+) in (?P<cloud>\w+)",
          "the quota of {cloud} for {what} machines in {where} is zero",
          "ask {cloud} for it, which can take days; or choose another region or cloud: --infra"),
    _Case(r"(?i)(?:Reason: |: )(?P<what>[^\n]*\bquota\b[^\n]*)", "the cloud's quota is too small: {what}",
          "ask the cloud for more, which can take days; or choose another region or cloud: --infra"),
    _Case(r'could not find an offer that satisfies the requirements "(?P<what>.*)"',
          "vast has no offer with {what}",
          "wait, or name another card: --set hardware.train.0.gpu=NAME:NUMBER"),
    _Case(r"docker pull (?P<image>\S+) failed", "the image {image} cannot be pulled",
          f"{CHECK_IMAGE}; or leave image out of the candidate"),
    _Case(r"Failed to acquire resources (?:\(.*?\) )?in (?P<where>.*?) for ",
          "no such machine is free in {where}", "wait, or choose another region or cloud: --infra"),
)


def explained(text: str) -> Explained | None:
    """What one of SkyPilot's texts means and what to do; None when it is not known."""
    plain = _COLOUR.sub("", text)
    for case in _CASES:
        if found := re.search(case.pattern, plain):
            values = {name: (value or "").strip() for name, value in found.groupdict().items()}
            values |= case.also(plain)
            return Explained(case.problem.format(**values), case.fix.format(**values))
    return None


def in_one_line(reason: str) -> str:
    """Why a job failed: in our words with the fix, or SkyPilot's first line without names of classes."""
    known = explained(reason)
    return f"{known.problem}; {known.fix}" if known else _first_line(reason)


def gateway_s_reason(body: str) -> str:
    """Why the answer was 502: `vast_answers.py` says it, a proxy on the way does not."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return "something between here and SkyPilot's API server answers 502"


def refusal(error: Exception) -> EngineError:
    """SkyPilot's refusal as an error of ours."""
    known = explained(str(error))
    if known is None:
        return EngineError(f"SkyPilot refuses: {_first_line(str(error)) or type(error).__name__}",
                           place="SkyPilot", fix="look into its request: sky api status; sky api logs ID")
    return EngineError(known.problem, place="SkyPilot", fix=known.fix)


def not_understood(url: str) -> EngineError:
    """Of an API server at a URL: it answers, in words of another version, or as a page for people."""
    return EngineError("SkyPilot's API server answers what this ldlm does not understand: it is of another "
                       "version, or no API server", place=url,
                       fix="bring it to the version of this checkout: ldlm controller up, or here "
                           ".venv/bin/sky api stop; .venv/bin/sky api start; or check its URL: ldlm init "
                           "--api-server URL")


def _first_line(text: str) -> str:
    lines = (line.strip() for line in _COLOUR.sub("", text).splitlines())
    return _CLASS.sub("", next(filter(None, lines), ""))
