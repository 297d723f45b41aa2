"""Tensors of a safetensors file, straight from the file to where they are wanted.

Its pages are not mapped into memory, as the library does it: a copy to a GPU would wait for each of them.
"""

from collections.abc import Iterator
from io import SEEK_CUR, FileIO
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
_CHUNK_BYTES = 2**25  # large enough for the rate of a disk's cache and of PCIe (guess)


def read_tensors(path: Path, device: torch.device) -> dict[str, Tensor]:
    """All tensors by name, in the dtypes of the file, which is read once, from its start to its end.

    Raises:
        SafetensorError: It is none, or cut off.
        EOFError: It has become shorter meanwhile.
    """
    tensors = dict(_empty(path, device))
    with FileIO(path) as file:
        file.seek(int.from_bytes(file.read(8), "little"), SEEK_CUR)  # over the header, behind its length
        staging = _Staging(file) if device.type == "cuda" else None
        for tensor in tensors.values():
            whole = tensor.reshape(-1).view(torch.uint8)
            for part in whole.split(_CHUNK_BYTES):
                staging.bring(part) if staging else _read(file, part)
    return tensors


def _empty(path: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Room for each tensor, in the order of the file, between which there are no gaps."""
    with safe_open(path, "pt") as header:
        for name in header.offset_keys():
            part = header.get_slice(name)
            yield name, torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device=device)


class _Staging:
    """Two page-locked buffers: one is read into while the other is on its way to the GPU."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._turns = [(torch.empty(_CHUNK_BYTES, dtype=torch.uint8, pin_memory=True), torch.cuda.Event())
                       for _ in range(2)]

    def bring(self, part: Tensor) -> None:
        """The next bytes of the file, to `part` on the GPU."""
        self._turns.reverse()
        buffer, is_gone = self._turns[0]
        is_gone.synchronize()
        _read(self._file, buffer[:len(part)])
        part.copy_(buffer[:len(part)], non_blocking=True)
        is_gone.record(torch.cuda.current_stream(part.device))


def _read(file: FileIO, part: Tensor) -> None:
    """Fill bytes of the host's memory."""
    rest = memoryview(part.numpy())
    while len(rest):
        num = file.readinto(rest)
        if not num:
            raise EOFError("the file has become shorter")
        rest = rest[num:]
