"""Reading DeepSpeed's checkpoint files without executing what they contain.

DeepSpeed loads them with ``torch.load(weights_only=False)``: a pickle, which can run any code. A checkpoint is untrusted
input like any other, so files are read with ``weights_only=True`` and a short list of DeepSpeed's own plain classes.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from pipeline.errors import CheckpointError


def _known_classes() -> list[Any]:
    """Classes that DeepSpeed itself writes into its files; all hold plain data."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


class SafeCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's file writer and reader, reading data only."""

    def __init__(self, original: TorchCheckpointEngine) -> None:
        self.__dict__.update(original.__dict__)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file.

        Raises:
            CheckpointError: the file is damaged, or would construct something other than data.
        """
        try:
            with torch.serialization.safe_globals(_known_classes()):
                return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read as plain data: {error}") from error
