"""`python -m posttrain` is `posttrain`."""

from __future__ import annotations

import sys

from posttrain.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
