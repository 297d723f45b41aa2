"""What of a search really reaches Vast: made as a rental makes it, and read where it arrives, on a loopback.

It is made in a process of its own, with an empty home and a key that is none: Vast itself is not asked.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from launcher.findings import Finding, Verdict
from launcher.offers import cloud_offer
from launcher.recipe import Candidate, checkout_folder
from launcher.vast_search import KEY, settings_of

_TRIED_WITHIN_S = 35.0  # importing SkyPilot takes up to 10 s on a busy machine
_SEARCH = "/api/v0/bundles/"
_BID_USD, _DISK_GIB, _HOST_MEMORY_GIB = 0.5, 100, 64
_INSTALL = "python3 -m trainer.environment launcher"


def look_at_search() -> Iterator[Finding]:
    """Whether all that a task asks of a machine of Vast gets there, in the form that Vast reads."""
    what, settings = "Vast search", _settings()
    try:
        sent = _sent(settings)
    except subprocess.TimeoutExpired:
        yield Finding(what, Verdict.NOT_CHECKED, f"was not made within {_TRIED_WITHIN_S:g} s", "ldlm doctor")
        return
    except subprocess.CalledProcessError as error:
        last = next(reversed(str(error.stderr).splitlines()), "")
        yield Finding(what, Verdict.NOT_CHECKED, f"could not be tried: {last}"[:300], _INSTALL)
        return
    meant = _meant(settings)
    if lost := sorted(name for name, value in meant.items() if sent.get(name) != value):
        yield Finding(what, Verdict.PROBLEM, "sent to a loopback, it does not say as meant: "
                      f"{', '.join(lost)}", _INSTALL)
    else:
        yield Finding(what, Verdict.OK, f"sent to a loopback, it says: {', '.join(sorted(meant))}")


def _settings() -> dict[str, Any]:
    """What a task of one RTX 5090 tells our plugin."""
    candidate = Candidate(infra="vast", gpu="RTX5090:1", bid_usd_per_hour=Decimal(str(_BID_USD)))
    return settings_of(cloud_offer(candidate, datetime.now(UTC)), None, _HOST_MEMORY_GIB)


def _meant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What Vast shall read, in its own words."""
    return {**settings["filters"], "type": "bid", "min_bid": {"lte": _BID_USD}, "num_gpus": {"eq": 1},
            "gpu_name": {"eq": "RTX 5090"}, "disk_space": {"gte": _DISK_GIB}, "verified": {"eq": True},
            "rentable": {"eq": True}}


def _sent(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The body that arrives; empty if none does. Raises subprocess.SubprocessError."""
    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {"HOME": home, "LDLM_HOME": home, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
                            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        done = subprocess.run([sys.executable, "-m", "launcher.doctor_search"], input=json.dumps(settings),
                              cwd=checkout_folder(), env=env, text=True, capture_output=True,
                              timeout=_TRIED_WITHIN_S, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class _Listener(BaseHTTPRequestHandler):
    """Stands where Vast would, reads what comes, and has nothing to offer."""

    searched: dict[str, Any] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == _SEARCH:
            type(self).searched = json.loads(body)
        answer = b'{"offers": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def main() -> None:
    """Rent with the settings on stdin where there is nothing to rent; print what was searched for."""
    from vastai import VastAI

    from launcher.sky_plugin import launch_through

    listener = HTTPServer(("127.0.0.1", 0), _Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    sdk = VastAI(api_key="none", server_url=f"http://127.0.0.1:{listener.server_port}")
    rent = launch_through(lambda *_, **__: "", lambda: sdk)
    with suppress(RuntimeError):  # which says that nothing is offered
        rent("doctor", "1x-RTX_5090-32-65536", "", _DISK_GIB, "", create_instance_kwargs={
            "bid_price": _BID_USD, KEY: json.load(sys.stdin)})
    listener.shutdown()
    print(json.dumps(_Listener.searched))


if __name__ == "__main__":
    main()
