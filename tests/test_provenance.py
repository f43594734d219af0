"""The commit that is named is that of the clone the package is imported from."""

import re
import subprocess

from nemo_comat import provenance


def git(folder, *command):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *identity, *command], check=True, capture_output=True)


def test_the_commit_is_named_and_whether_it_was_edited(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "CLONE", tmp_path)
    assert provenance.commit_here() == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "mine.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    git(tmp_path, "tag", "-am", "v1", "v1")
    said = provenance.commit_here()
    assert re.fullmatch("[0-9a-f]{7,}", said)
    (tmp_path / "beside.py").write_text("2")
    assert provenance.commit_here() == said
    (tmp_path / "mine.py").write_text("2")
    assert provenance.commit_here() == f"{said}+changes"
    # a package that is installed within another's clone
    monkeypatch.setattr(provenance, "CLONE", tmp_path / "site-packages")
    assert provenance.commit_here() == "unknown"
    monkeypatch.setattr(provenance, "CLONE", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert provenance.commit_here() == "unknown"


def test_the_processor_is_named_where_the_system_knows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    assert provenance.processor_name() == "unknown"
    monkeypatch.setattr(provenance.platform, "processor", lambda: "arm")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t: a model name : b\n")
    assert provenance.processor_name() == "arm"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Chip: fast\n\nprocessor\t: 1\nmodel name\t: B\n")
    assert provenance.processor_name() == "A Chip: fast"
