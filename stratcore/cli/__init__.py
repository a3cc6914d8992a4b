"""The command line: arguments -> recipe -> run.

User errors are one line on stderr and exit code 2.
"""

from __future__ import annotations

from stratcore.cli.analysis import analyze
from stratcore.cli.training import train

__all__ = ["analyze", "train"]
