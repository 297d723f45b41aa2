"""What SkyPilot and ldlm use of Vast.ai's REST API: `python -m tests.lab.fake_vast LAB ADDRESS PORT`.

What it rents out are namespaces of this machine, without GPUs. Tests steer it by /_fake/,
without a key:

    GET  /_fake/requests            every request so far: at, method, path, body
    GET  /_fake/bill                what each instance has cost (vast_billing.py), as decimal text
    POST /_fake/outbid/<id>         others bid more: the instance is stopped, its disk is kept and billed
    POST /_fake/vanish/<id>         the host is gone without a trace
    POST /_fake/price/<machine_id>  {"dph_base" | "min_bid" | "bid_price": $/h} from now on
    POST /_fake/liar/on, /off       offer the H100 machine that has an RTX 3060
    POST /_fake/surcharge           {"usd": $} too much in the record of charges for the newest instance
    POST /_fake/restock             all offers and prices as at the start, once nothing is rented
"""

import json
import re
import signal
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl

from tests.lab.vast_host import NamespaceHost
from tests.lab.vast_market import Market, Refused
from tests.lab.vast_offers import SearchError

Body = dict[str, Any]
Handler = Callable[[Market, str, Body], Any]  # the number in the path, or what stands in its place

_DONE = {"success": True}


def _add_key(market: Market, _: str, body: Body) -> Any:
    key = {"id": len(market.ssh_keys) + 1, "public_key": body["ssh_key"]}
    market.ssh_keys.append(key)
    return _DONE | {"key": key}


def _list(market: Market, _: str, body: Body) -> Any:
    rows = market.rows()
    return {"instances": rows, "next_token": None, "total_instances": len(rows)}


def _then(act: Callable[[Market, str, Body], None]) -> Handler:
    def handler(market: Market, number: str, body: Body) -> Any:
        act(market, number, body)
        return _DONE

    return handler


_API: dict[tuple[str, str], Handler] = {
    ("POST", "/api/v0/bundles"): lambda market, _, body: {"offers": market.search(body)},
    ("PUT", r"/api/v0/asks/(\d+)"): lambda market, number, body: _DONE | {
        "new_contract": market.rent(int(number), body)},
    ("GET", "/api/v1/instances"): _list,
    ("GET", r"/api/v0/instances/(\d+)"): lambda market, number, _: {"instances": market.row(int(number))},
    ("PUT", r"/api/v0/instances/(\d+)"): _then(lambda market, number, body: market.change(int(number), body)),
    ("PUT", r"/api/v0/instances/bid_price/(\d+)"): _then(
        lambda market, number, body: market.bid(int(number), body.get("price"))),
    ("DELETE", r"/api/v0/instances/(\d+)"): _then(lambda market, number, _: market.destroy(int(number))),
    ("GET", "/api/v0/ssh"): lambda market, _, body: market.ssh_keys,
    ("POST", "/api/v0/ssh"): _add_key,
    ("GET", "/api/v0/charges"): lambda market, _, body: market.charges(body),
    ("GET", "/api/v0/users/current"): lambda market, _, body: market.account_row(),
    ("GET", "/api/v0/volumes"): lambda market, _, body: {"volumes": market.volumes},
}
_CONTROLS: dict[tuple[str, str], Handler] = {
    ("GET", "/_fake/bill"): lambda market, _, body: market.bill(),
    ("POST", r"/_fake/outbid/(\d+)"): _then(lambda market, number, _: market.outbid(int(number))),
    ("POST", r"/_fake/vanish/(\d+)"): _then(lambda market, number, _: market.vanish(int(number))),
    ("POST", r"/_fake/price/(\d+)"): _then(lambda market, number, body: market.price(int(number), body)),
    ("POST", "/_fake/surcharge"): _then(lambda market, _, body: market.surcharge(Decimal(str(body["usd"])))),
    ("POST", "/_fake/restock"): _then(lambda market, _, body: market.restock()),
    ("POST", "/_fake/liar/(on|off)"): _then(lambda market, word, _: market.show_liar(word == "on")),
}


class VastServer(ThreadingHTTPServer):
    """Listens at an address.

    Args:
        key: The one that every request under /api/ has to bring; an instance has one for itself alone.
        port: 0 takes any free one; see `server_port`.
    """

    daemon_threads = True

    def __init__(self, market: Market, key: str, port: int, address: str = "127.0.0.1") -> None:
        super().__init__((address, port), _Request)
        self.market, self.key = market, key
        self.requests: list[Body] = []


def _read(value: str) -> Any:
    """What Vast's clients write into a query: JSON, or a plain word."""
    try:
        return json.loads(value)
    except ValueError:
        return value


class _Request(BaseHTTPRequestHandler):
    server: VastServer
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            body |= {name: _read(value) for name, value in parse_qsl(query)}
            if path.startswith("/_fake/"):
                return self._send(200, self._control(path, body))
            self.server.requests.append(
                {"at": time.time(), "method": self.command, "path": path, "body": body})
            if not self._is_allowed(path):
                raise Refused(401, "auth_error", "Invalid user key")
            self._send(200, self._route(_API, path, body))
        except Refused as refused:
            self._send(refused.status, {"success": False, "error": refused.error, "msg": refused.message})
        except (SearchError, KeyError, ValueError) as error:
            self._send(400, {"success": False, "error": "invalid_args", "msg": str(error)})

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _is_allowed(self, path: str) -> bool:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        itself = re.fullmatch(r"/api/v0/instances/(\d+)/?", path)
        own = self.server.market.own_key(int(itself[1])) if itself else None
        return given == self.server.key or (own is not None and given == own)

    def _control(self, path: str, body: Body) -> Any:
        return list(self.server.requests) if path == "/_fake/requests" else self._route(_CONTROLS, path, body)

    def _route(self, routes: dict[tuple[str, str], Handler], path: str, body: Body) -> Any:
        for (method, pattern), handler in routes.items():
            found = re.fullmatch(pattern + "/?", path)
            if found and method == self.command:
                return handler(self.server.market, "".join(found.groups()), body)
        raise Refused(404, "no_route", f"there is no {self.command} {path}")

    def _send(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *words: Any) -> None:
        """Instances are asked for all the time: only what changes something is worth a line."""
        if self.command != "GET":
            print(time.strftime("%H:%M:%S"), format % words, flush=True)


def main() -> None:
    """Serve until SIGTERM, then destroy what is still rented."""
    lab, address, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    key = (lab / "sky/.config/vastai/vast_api_key").read_text().strip()
    server = VastServer(Market(NamespaceHost(lab / "vast/log")), key, port, address)

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    try:
        server.serve_forever()
    finally:
        server.market.close()


if __name__ == "__main__":
    main()
