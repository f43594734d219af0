"""Waits: what is being done is said before it takes long, and what other packages say meanwhile is kept out."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("nemo_comat")


def announce(sentence: str) -> None:
    """Says what takes a while now, and about how long; where several processes work, the first of a machine says it.

    It is a warning of the logger "nemo_comat": with no logging set up, Python prints warnings alone, to stderr.

    Args:
        sentence: str.
    Examples:
        >>> import unittest.mock
        >>> with unittest.mock.patch.object(LOGGER, "warning", print):
        ...     announce("Reading 3 files; this takes 2 minutes.")
        Reading 3 files; this takes 2 minutes.
    """
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        LOGGER.warning(sentence)


def announce_nemo() -> None:
    """For scripts, before they import NeMo; silent where it is there already.

    What its telemetry says, that nothing is collected, is kept out.

    Examples:
        >>> import unittest.mock
        >>> with unittest.mock.patch.dict(sys.modules, nemo=None):
        ...     announce_nemo()
    """
    logging.getLogger("nv_one_logger").setLevel(logging.ERROR)
    if "nemo" not in sys.modules:
        announce("Loading NeMo; this takes 10 to 60 seconds.")


@contextmanager
def kept_out() -> Iterator[None]:
    """Keeps stderr out while the block runs, also what compiled code writes; shows it where the block fails.

    Examples:
        >>> with kept_out():
        ...     os.write(2, b"not shown")
        9
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
