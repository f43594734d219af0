"""What the benchmarks' command lines refuse."""

import argparse
import importlib

import arguments
import pytest


@pytest.mark.parametrize("script", ["bench_align", "bench_viterbi"])
@pytest.mark.parametrize(
    "device, reason",
    [("nonsense", "is none"), ("cuda:99", "is not here: PyTorch sees"), ("meta", "cannot be timed here")],
)
def test_a_search_is_timed_on_a_device_that_is_there(tmp_path, script, device, reason):
    with pytest.raises(SystemExit, match=f"--device {device} {reason}.*; give .*cpu") as error:
        importlib.import_module(script).main(["--device", device, f"--out={tmp_path}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_nothing_is_measured_no_times(text):
    assert arguments.times("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="1 or more, got"):
        arguments.times(text)


@pytest.mark.parametrize("text", ["4,3", "4,3,2,1", "4,2,3", "4,0,0", "4,a,2", ""])
def test_a_shape_that_does_not_fit_is_refused(text):
    options = dict(axes="B,S,N with S >= N", right=lambda _, s, n: s >= n)
    assert arguments.shape_of("4,3,3", **options) == (4, 3, 3)
    with pytest.raises(argparse.ArgumentTypeError, match="a shape is B,S,N with S >= N, got"):
        arguments.shape_of(text, **options)
