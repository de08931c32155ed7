"""How much arithmetic a step is, and which share of the devices' peak a run reaches (MFU).

    flops = count(model.encode_image, image_BCHW)             # counted once, from shapes, without computing anything
    utilisation(flops_per_sample, samples_per_second, world_size, peak_tflops("NVIDIA H200"))     # 0.47

Model FLOPs are those of the towers: a forward pass as torch's own counter sees it (matrix products, convolutions, attention),
three times that for forward and backward. What a run computes besides is left out on purpose: recomputed activations, the
second forward pass of micro-batches, the loss. So MFU falls when a setting spends arithmetic that the model does not need.
Captions count at the tower's full context, as in published figures, although padding is not computed where that is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "MI300X": 1307.0,
}
"""Part of a device name to its dense bf16 (where it has none, fp16) peak, 1e12 operations a second; the first match counts."""


def count(function: Callable[..., object], *arguments: Tensor) -> int:
    """Floating-point operations of one call; a multiply-add is two. Only shapes matter, nothing is computed or changed."""
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), counter:
        function(*(fake.from_tensor(argument) for argument in arguments))
    return int(counter.get_total_flops())


def peak_tflops(device_name: str) -> float | None:
    """Dense peak of a device by its name, or None where it is not in the table."""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in device_name), None)


def utilisation(flops_per_sample: float, samples_per_second: float, world_size: int, peak: float) -> float:
    """Model FLOPs utilisation: the share of ``world_size`` devices' peak (1e12 operations a second each)."""
    return 3 * flops_per_sample * samples_per_second / (world_size * peak * 1e12)
