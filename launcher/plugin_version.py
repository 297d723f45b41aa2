"""The version of our plugin in SkyPilot's API server: a digest of the source of all that it consists of.

A server goes on with the code that it has loaded, whatever is pulled meanwhile; so who rents through it asks
which that is.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
_PLUGIN = "launcher.sky_plugin"
_DIGITS = 12


def plugin_version() -> str:
    """Of the source as it lies in this checkout now, in 12 hexadecimal digits. Takes a fifth of a second."""
    digest = hashlib.sha256()
    for name, source in sorted(plugin_modules().items()):
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:_DIGITS]


def plugin_modules() -> dict[str, bytes]:
    """Source by name of every module of ours that the plugin imports, at once or later."""
    found: dict[str, bytes] = {}
    open_names = [_PLUGIN]
    while open_names:
        name = open_names.pop()
        path = _CHECKOUT.joinpath(*name.split(".")).with_suffix(".py")
        if name not in found and name.startswith(("launcher.", "trainer.")) and path.exists():
            found[name] = path.read_bytes()
            open_names += _imports(found[name])
    return found


def _imports(source: bytes) -> Iterator[str]:
    """What may be modules: of `from a import b` it is `a`, and maybe `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)
