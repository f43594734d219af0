"""The documentation's pages: files of the root among them, links as the site has them, sections of our docstrings."""

from pathlib import Path

import pytest

for needed in ("mkdocs", "griffe"):
    pytest.importorskip(needed)
from docs_hook import PAGES, from_root, relinked
from docs_sections import SECTION


@pytest.mark.parametrize(
    "root, docs",
    [
        ("![a](docs/method.svg)", "![a](method.svg)"),
        ("[a](docs/train.md#stop)", "[a](train.md#stop)"),
        ("[a](conf/x.yaml)", "[a](../conf/x.yaml)"),
        ("[a](#here) [b](https://example.org/x)", "[a](#here) [b](https://example.org/x)"),
    ],
)
def test_a_page_of_the_root_gets_the_links_of_docs(root, docs):
    assert from_root(root) == docs


@pytest.mark.parametrize(
    "target, up, expected",
    [
        ("train.md#stop", "../", "[a](train.md#stop)"),
        ("../RESULTS.md", "../", "[a](results.md)"),
        ("../RESULTS.md#open", "../", "[a](results.md#open)"),
        ("../../README.md", "../../", "[a](../index.md)"),
        ("../conf/x.yaml", "../", "a"),
    ],
)
def test_links_out_of_docs(target, up, expected):
    assert relinked("", "a", target, up) == expected
    assert set(PAGES) <= {path.name for path in Path(__file__).resolve().parents[1].iterdir()}


def test_sections_without_an_empty_line_before_them():
    given = "Does it.\n\nArgs:\n    x: one.\nReturns:\n    int.\nSource: a paper."
    assert SECTION.sub("\n\n", given) == ("Does it.\n\nArgs:\n    x: one.\n\nReturns:\n    int.\n\nSource: a paper.")
