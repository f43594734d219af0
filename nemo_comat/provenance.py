"""Where measurements come from: the commit that was run, and the processor that ran it."""

import platform
import subprocess
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]
PROCESSORS = Path("/proc/cpuinfo")


def commit_here() -> str:
    """The commit of the clone that this package is imported from.

    Returns:
        str: git's short hash, with "+changes" where files were edited since; "unknown" without git or outside a clone.
    Examples:
        >>> " " in commit_here()
        False
    """
    # an installed package may lie in a clone of something else
    if not (CLONE / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(CLONE), "describe", "--always", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor_name() -> str:
    """The processor's name as Linux gives it, or else as Python does; "unknown" where neither knows it.

    Examples:
        >>> processor_name() != ""
        True
    """
    try:
        lines = PROCESSORS.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.processor() or "unknown")
