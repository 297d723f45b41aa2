"""Copies from host memory that do not make the host wait for the device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device, in time for whatever is queued there next."""
    if tensor.device.type != "cpu" or torch.device(device).type != "cuda":
        return tensor.to(device)
    # From pageable memory the copy would wait until the device has done all that was queued before it.
    return tensor.pin_memory().to(device, non_blocking=True)


def write_to(there: Tensor, tensor: Tensor) -> None:
    """Write a tensor into one of its shape on a device, in time for whatever is queued there next."""
    is_far = tensor.device.type == "cpu" and there.device.type == "cuda"
    there.copy_(tensor.pin_memory() if is_far else tensor, non_blocking=True)
