"""How fast a run is, what share of the devices' peak that is, and when it will be done: the figures of a log record."""

from __future__ import annotations

import time
from typing import Any

import torch

from pipeline.config import RunConfig
from pipeline.dist import World
from pipeline.watching import flops
from pipeline.watching.pace import Pace


class Speedometer:
    """Turns a pace into throughput, utilisation, and time to the end."""

    def __init__(self, cfg: RunConfig, world: World, device: torch.device, model: Any, num_view_params: int) -> None:
        """Count the model's arithmetic once.

        Args:
            model: the run's ``ClipModel``, still on the CPU.
            num_view_params: numbers that describe a view.
        """
        self._batch_size, self._total_steps, self._world_size = cfg.train.global_batch_size, cfg.train.steps, world.size
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = cfg.log.peak_tflops or flops.peak_tflops(name)
        self._flops = flops_per_sample(model, len(cfg.augment.views), num_view_params)
        self._started: tuple[float, int] | None = None

    def lap(self, pace: Pace, step: int) -> dict[str, float]:
        """The figures since the last record.

        Samples per second over all ranks, share of waiting for data, model TFLOP/s per device, MFU where the peak is known; and
        from the second record on the seconds to the end of the run, saves and evaluations included.
        """
        figures = pace.lap(self._batch_size)
        rate = figures["samples_per_second"]
        figures["tflops_per_device"] = 3e-12 * self._flops * rate / self._world_size
        if self._peak is not None:
            figures["mfu"] = flops.utilisation(self._flops, rate, self._world_size, self._peak)
        now = time.monotonic()
        if self._started is None:
            self._started = (now, step)
        elif step > self._started[1]:
            figures["eta_seconds"] = (now - self._started[0]) / (step - self._started[1]) * (self._total_steps - step)
        return figures


def flops_per_sample(model: Any, num_views: int, num_view_params: int) -> int:
    """Operations of a forward pass of both towers for one pair: each view, and the caption at full length."""
    size, length = model.image_size, model.context_length
    image = flops.count(model.encode_image, torch.zeros(1, 3, size, size), torch.zeros(1, num_view_params))
    if model.second_image_tower:
        return (num_views + 1) * image
    return num_views * image + flops.count(model.text, torch.zeros(1, length, dtype=torch.int64))
