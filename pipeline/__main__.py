"""``python -m pipeline`` is the ``unisphere`` command, for a checkout that is not installed."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
