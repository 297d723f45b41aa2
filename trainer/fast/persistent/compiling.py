"""From the kernel's source to machine code by NVRTC, which torch for CUDA brings (`cuda.bindings`).

It is kept beside Triton's, so that one setting, TRITON_CACHE_DIR, moves all that was compiled.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from trainer.fast.persistent.shape import Shape

_FOLDER = Path(__file__).parent
_HEADERS = ("primitives.cuh", "shape.cuh", "helpers.cuh", "attention.cuh")
_OPTIONS = (b"--gpu-architecture=sm_90a", b"--std=c++17")


@functools.cache
def cubin_of(shape: Shape) -> bytes:
    """Machine code for sm_90a, compiled once on a machine for a source and a version of torch.

    Raises:
        RuntimeError: NVRTC refused the source; its messages.
    """
    headers = {name: (_FOLDER / name).read_text() for name in _HEADERS} | {"wgmma.cuh": _wgmma_header(shape)}
    macros = "".join(f"#define {name} {value}\n" for name, value in shape.macros.items())
    source = macros + (_FOLDER / "persistent.cu").read_text()
    told = repr((source, sorted(headers.items()), _OPTIONS, torch.__version__))
    path = _folder() / f"{hashlib.sha256(told.encode()).hexdigest()}.cubin"
    if path.is_file():
        return path.read_bytes()
    cubin = _compiled(source, headers)
    with contextlib.suppress(OSError):  # then the next process compiles again
        _keep(path, cubin)
    return cubin


def _folder() -> Path:
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache") / "ldlm"


def _keep(path: Path, cubin: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        draft.write(cubin)
    os.replace(draft.name, path)


def _compiled(source: str, headers: dict[str, str]) -> bytes:
    from cuda.bindings import nvrtc

    status, program = nvrtc.nvrtcCreateProgram(
        source.encode(), b"persistent.cu", len(headers), [text.encode() for text in headers.values()],
        [name.encode() for name in headers])
    if int(status) == 0:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(_OPTIONS), list(_OPTIONS))
    if int(status) != 0:
        raise RuntimeError(f"NVRTC: {status}\n{_log(nvrtc, program)}")
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = b" " * size  # NVRTC writes into it
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin


def _log(nvrtc: Any, program: Any) -> str:
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.decode().rstrip("\0")


def _wgmma_header(shape: Shape) -> str:
    return "#pragma once\n" + "".join(_wgmma(width) for width in sorted(shape.product_widths))


def _wgmma(columns: int) -> str:
    """`mma` and `mma_reg` (primitives.cuh) of one width: each sum is an operand by name."""
    count = columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16"
    name_e4m3 = f"wgmma.mma_async.sync.aligned.m64n{columns}k32.f32.e4m3.e4m3"
    first = ", ".join(f"%{count + i}" for i in range(4))
    registers = ", ".join(f'"r"(a[{i}])' for i in range(4))
    return f'''
template <> FN void mma<{columns}>(float (&sums)[{count}], u32 a, u32 b) {{
  asm volatile("{name} {{{sums}}}, %{count}, %{count + 1}, 1, 1, 1, 0, 0;"
               : {outputs} : "l"(descriptor(a)), "l"(descriptor(b)));
}}
template <> FN void mma_e4m3<{columns}>(float (&sums)[{count}], u32 a, u32 b) {{
  asm volatile("{name_e4m3} {{{sums}}}, %{count}, %{count + 1}, 1, 1, 1;"
               : {outputs} : "l"(descriptor(a)), "l"(descriptor(b)));
}}
template <> FN void mma_reg<{columns}>(float (&sums)[{count}], const u32* a, u32 b) {{
  asm volatile("{name} {{{sums}}}, {{{first}}}, %{count + 4}, 1, 1, 1, 0;"
               : {outputs} : {registers}, "l"(descriptor(b)));
}}'''
