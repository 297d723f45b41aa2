"""What is known of GPUs by SkyPilot's names: memory, arithmetic, and how fast bytes move. Pure."""

import difflib
from collections.abc import Mapping
from typing import NamedTuple


class GpuKind(NamedTuple):
    """A kind of GPU that can be rented or bought.

    Attributes:
        memory_gib: What CUDA offers of it, a little less than the data sheet says.
        bf16_tflops: Dense, by the vendors' data sheets; float32's where there is no bf16, which is then
            computed that way.
        fp32_tflops: Without tensor cores, which torch leaves out by default.
        memory_bytes_per_s: Of its own memory, by the data sheets.
        link_bytes_per_s: To the other GPUs of its node, one way (guess: NVLink, or PCIe by way of the host).
        has_bf16: From Ampere on.
        has_fp8: Multiplies matrices in e4m3: from Ada and Hopper on.
    """

    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float = 12e9
    has_bf16: bool = True
    has_fp8: bool = False


_NVLINK = 200e9
# Memory is a guess to about half a GiB.
GPU_KINDS: Mapping[str, GpuKind] = {
    "T4": GpuKind(14.6, 8.1, 8.1, 0.32e12, has_bf16=False),
    "V100": GpuKind(15.8, 15.7, 15.7, 0.90e12, 100e9, has_bf16=False),
    "V100-32GB": GpuKind(31.7, 15.7, 15.7, 0.90e12, 100e9, has_bf16=False),
    "L4": GpuKind(22.0, 121.0, 30.3, 0.30e12, has_fp8=True),
    "A10": GpuKind(22.0, 125.0, 31.2, 0.60e12),
    "A10G": GpuKind(22.0, 70.0, 31.2, 0.60e12),
    "RTX3060": GpuKind(11.6, 25.6, 12.7, 0.36e12),
    "RTX3080": GpuKind(9.6, 59.5, 29.8, 0.76e12),
    "RTX3090": GpuKind(23.6, 71.0, 35.6, 0.94e12),
    "RTX4070": GpuKind(11.6, 58.3, 29.2, 0.50e12, has_fp8=True),
    "RTX4070Ti": GpuKind(11.6, 80.2, 40.1, 0.50e12, has_fp8=True),
    "RTX4080": GpuKind(15.6, 97.5, 48.7, 0.72e12, has_fp8=True),
    "RTX4090": GpuKind(23.6, 165.2, 82.6, 1.01e12, has_fp8=True),
    "RTX5070": GpuKind(11.5, 61.7, 30.8, 0.67e12, has_fp8=True),
    "RTX5070Ti": GpuKind(15.5, 87.9, 43.9, 0.90e12, has_fp8=True),
    "RTX5080": GpuKind(15.5, 112.6, 56.3, 0.96e12, has_fp8=True),
    "RTX5090": GpuKind(31.3, 209.5, 104.8, 1.79e12, has_fp8=True),
    "RTXA6000": GpuKind(47.4, 154.8, 38.7, 0.77e12),
    "A40": GpuKind(44.4, 149.7, 37.4, 0.70e12),
    "L40": GpuKind(44.4, 181.0, 90.5, 0.86e12, has_fp8=True),
    "L40S": GpuKind(44.4, 362.0, 91.6, 0.86e12, has_fp8=True),
    "RTX6000-Ada": GpuKind(47.4, 364.0, 91.1, 0.96e12, has_fp8=True),
    "RTXPRO6000": GpuKind(94.9, 503.8, 125.0, 1.79e12, has_fp8=True),
    "A100": GpuKind(39.4, 312.0, 19.5, 1.56e12, _NVLINK),
    "A100-80GB": GpuKind(79.1, 312.0, 19.5, 2.04e12, _NVLINK),
    "H100": GpuKind(79.1, 989.0, 67.0, 3.35e12, _NVLINK, has_fp8=True),
    "H200": GpuKind(139.7, 989.0, 67.0, 4.80e12, _NVLINK, has_fp8=True),
    "B200": GpuKind(178.0, 2250.0, 80.0, 8.00e12, _NVLINK, has_fp8=True),
}
# Which of them advice names: what clouds have, and homes; with dollars an hour of one that may be taken back
# (guess: as the recipes bid, others by marketplaces of 2026).
ADVISED: Mapping[str, float] = {
    "L4": 0.25, "A10G": 0.35, "RTX3090": 0.15, "RTX4090": 0.25, "RTX5090": 0.40, "A100": 0.60, "L40S": 0.55,
    "RTX6000-Ada": 0.55, "A100-80GB": 0.80, "H100": 1.60, "H200": 2.20, "B200": 3.50}
# A middling card of these years (guess). Its memory is never asked for: the recipe or a driver tells.
_UNKNOWN = GpuKind(0.0, 100.0, 30.0, 0.7e12)


def gpu_kind(name: str) -> GpuKind:
    """What is known of a GPU; of one that is not in the table only a guess at its speed."""
    return GPU_KINDS.get(name, _UNKNOWN)


def known_name(name: str) -> str:
    """SkyPilot's spelling of a known GPU; any other name as it is."""
    return next((known for known in GPU_KINDS if known.lower() == name.lower()), name)


def nearest_name(name: str) -> str | None:
    """The known GPU whose name is most like this one, if any is."""
    names = {known.lower(): known for known in GPU_KINDS}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return names[near[0]] if near else None
