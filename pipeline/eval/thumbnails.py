"""A picture of a shard as a link that holds its data, for pages that need no other file."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from pipeline.data.augment import decode, eval_view
from pipeline.data.evalset import MAX_IMAGE_PIXELS


def picture_link(data: bytes | memoryview, size: int) -> str:
    """The encoded image ``data`` as ``data:image/webp;...``, cropped and scaled to ``size`` x ``size`` pixels.

    Raises:
        BadSample: it cannot be decoded.
    """
    view_CHW = eval_view(decode(data, MAX_IMAGE_PIXELS), size)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(view_CHW).transpose(1, 2, 0)).save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
