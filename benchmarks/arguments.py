"""Types of the benchmarks' options, for argparse; imports nothing slow."""

import argparse


def times(text):
    """A number of times that something is measured, 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of times is 1 or more, got {text!r}")
    return int(text)


def shape_of(text, axes, right):
    """The numbers of a shape such as 64,800,200, for argparse.

    Args:
        text: as it was given. axes: str, such as "B,S,N with S >= N >= 1". right: function of the numbers that is true
            where the axes fit.
    """
    try:
        numbers = tuple(int(number) for number in text.split(","))
        fits = min(numbers) > 0 and len(numbers) == len(axes.split()[0].split(",")) and right(*numbers)
    except ValueError:
        fits = False
    if not fits:
        raise argparse.ArgumentTypeError(f"a shape is {axes}, got {text!r}")
    return numbers
