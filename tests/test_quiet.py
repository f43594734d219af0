"""What transformers says is kept out, and only while it loads."""

import logging

import pytest

from nemo_comat.teacher.quiet import quiet_transformers


@pytest.mark.parametrize("bars", [True, False])
def test_transformers_speaks_again_afterwards(bars):
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    with pytest.raises(ValueError), quiet_transformers(bars=bars):
        assert theirs.get_verbosity() == logging.ERROR and theirs.is_progress_bar_enabled() == (bars and before[1])
        raise ValueError
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before
