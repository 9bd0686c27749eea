"""Run the command line: `python -m posttrain` does the same as `posttrain`."""

from __future__ import annotations

import sys

from posttrain.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
