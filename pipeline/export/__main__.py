"""``python -m pipeline.export``."""

from __future__ import annotations

import sys

from pipeline.export.command import main

if __name__ == "__main__":
    sys.exit(main())
