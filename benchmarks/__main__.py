"""`python -m benchmarks NAME | all | guard | plot [--quick] [--write]`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import main

if __name__ == "__main__":
    sys.exit(main())
