"""What transformers says while it loads, kept out."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers(*, bars: bool) -> Iterator[None]:
    """Keeps transformers' warnings and reports of loading out while the block runs; errors are raised as ever.

    Args:
        bars: True where its progress bars are wanted, as for a download.
    Examples:
        >>> from transformers.utils import logging
        >>> with quiet_transformers(bars=True):
        ...     logging.get_verbosity() == logging.ERROR
        True
    """
    from transformers.utils import logging as theirs

    verbosity, had_bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    if not bars:
        theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if had_bars and not bars:
            theirs.enable_progress_bar()
