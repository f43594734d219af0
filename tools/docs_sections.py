"""Lets the parser of Google's docstrings see ours, whose sections follow each other without an empty line."""

import re

import griffe

SECTION = re.compile(r"(?<=\S)\n(?=(?:Args|Returns|Yields|Raises|Source|Examples):)")


class Sections(griffe.Extension):
    """Puts an empty line before each section of a docstring."""

    def on_object(self, *, obj, **kwargs):
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
