"""The report's numbers by hand."""

import gzip
import json
import re
import shutil
import sys

import numpy as np
import prepare
import pytest
import records
import report
import word_errors
from recipe import librispeech, scored


def test_a_line_ends_where_json_says_so(tmp_path):
    row = {"audio_filepath": "a.wav", "text": "a\u2028dog\x85ran"}
    for name in ("train", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert records.training_texts(tmp_path) == [row["text"]]
    assert len(report.manifest_audio(tmp_path / "test.json")) == 1
    librispeech(tmp_path / "corpus", {"x": [row["text"], "one"]})
    assert [found["text"] for found in prepare.rows_of_librispeech(tmp_path / "corpus")] == [row["text"], "one"]


def test_copies_at_other_speeds_are_no_texts_of_their_own(tmp_path):
    rows = [{"text": "a dog"}, {"text": "a dog"}, {"text": ""}, {"text": "a dog", "speed": 0.9}]
    (tmp_path / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert records.training_texts(tmp_path) == ["a dog", "a dog"]


def test_runs_that_are_not_there_are_named(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    for names, seeds, message in [
        (["ctc", "defualt"], (), "run defualt; .* has ctc"),
        ((), [1, 2], "run seed2; .* ctc"),
    ]:
        with pytest.raises(ValueError, match=message):
            records.finished(tmp_path, names, seeds)


def test_what_is_kept_of_a_run_says_nothing_of_where_it_lay():
    given = {
        "places": [
            "a=/x/b=c/d.json",
            "/x/y=z",
            "/x/m.nemo",
            "a=/x y/b c/d",
            "a='/x y/b'",
            "a=[/x/b, '/y/c d']",
            "a={b:/c/d}",
        ],
        "settings": ["model.optim.lr=1e-3", "a=b/c", "a=[b/c]", "a='https://b/c'", "a=https://b/c", 1, None],
    }
    places = ["a=d.json", "y=z", "m.nemo", "a=d", "a='b'", "a=[b, 'c d']", "a={b:d}"]
    assert records.without_places(given) == {**given, "places": places}


def test_a_run_that_is_copied_beside_itself_is_no_seed(tmp_path):
    heard = ["the cat sad", "on mat", "dog run far"]
    for name in ("seed1", "seed1.bak", "seed-old"):
        scored(tmp_path / "ctc" / name, heard)
    assert [folder.name for folder in records.finished(tmp_path)] == ["seed1"]
    before = (tmp_path / "ctc" / "seed1" / "run.json").read_text()
    with pytest.raises(ValueError, match="holds the runs themselves; give --keep another folder"):
        records.keep(tmp_path, [], tmp_path / "ctc" / "..")
    assert (tmp_path / "ctc" / "seed1" / "run.json").read_text() == before


@pytest.mark.parametrize("name", records.RECORDS)
def test_a_record_that_is_damaged_is_named(tmp_path, name):
    folder = tmp_path / "ctc" / "seed1"
    scored(folder, ["the cat sad", "on mat", "dog run far"])
    whole = (folder / name).read_bytes()
    for content, reason in (
        (whole[: len(whole) // 2], r"is damaged \(.*\)"),
        (b"[]" * (name[-1] == "n"), "has nothing in it"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"seed1/{name} {reason}; train or score this run again"):
            records.read_runs(tmp_path)
    (folder / name).unlink()
    (folder / f"{name}.gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(ValueError, match=rf"seed1/{name}\.gz is damaged"):
        records.read_runs(tmp_path)


def test_costs_of_different_machines_are_no_ratios(tmp_path):
    heard = ["the cat sad", "on mat", "dog run far"]
    for name in ("ctc", "comat"):
        scored(tmp_path / name / "seed1", heard)
    file = tmp_path / "comat" / "seed1" / "run.json"
    settings = json.loads(file.read_text())

    def costs():
        return report.table(report.summary(records.read_runs(tmp_path, first=["ctc"])))[1][-3:-1]

    assert costs() == ["1.00", "1.00"]
    for machine in ("another chip", "a chip; another chip", ""):
        file.write_text(json.dumps({**settings, "machine": machine}))
        assert costs() == ["", ""]
    # of before, neither says it
    for name in ("ctc", "comat"):
        (tmp_path / name / "seed1" / "run.json").write_text(json.dumps({**settings, "machine": ""}))
    assert costs() == ["", ""]


def test_too_few_errors_have_no_interval(tmp_path):
    def interval(ours, theirs):
        return word_errors.paired_interval([np.array([[n, 5] for n in ours])], [np.array([[n, 5] for n in theirs])])

    assert interval([1, 2], [0, 0]) == (None, None, None)
    assert interval([1] + 9 * [0], [2] + 9 * [0]) == (-0.5, None, None)  # a draw may have none of the errors
    assert interval([1], [2]) == (-0.5, None, None)
    change, low, high = interval(20 * [1, 2], 20 * [2, 2])
    assert change == -0.25 and -0.5 < low < change < high < 0
    right = ["the cat sat", "on the mat", "a dog ran far"]
    scored(tmp_path / "ctc" / "seed1", right)
    scored(tmp_path / "comat" / "seed1", ["the cat sad", "on mat", "dog run far"])
    scored(tmp_path / "interctc" / "seed1", ["the cat sad", "on the mat", "a dog ran far"])
    text = report.report(tmp_path)
    assert re.search(r"\| comat \| 1 \| 40.0 % \| 40.0 % \| [\d.]+ % \|  \| \+300.0 % \|", text)
    assert "NaN" not in (tmp_path / "report.json").read_text()


def test_the_parts_of_the_bootstrap_are_its_draws(monkeypatch):
    rng = np.random.default_rng(1)
    sides = [[np.stack((rng.integers(1, 4, 30), np.full(30, 9)), 1)] for _ in range(2)]
    whole = word_errors.paired_interval(*sides, draws=1200)
    monkeypatch.setattr(word_errors, "PART", 5000)
    assert word_errors.paired_interval(*sides, draws=1200) == whole


def test_the_report_may_be_written_elsewhere_and_names_what_was_decoded_otherwise(tmp_path):
    runs = tmp_path / "runs"
    for name in ("ctc", "ctc_ngram"):
        scored(runs / name / "seed1", ["the cat sad", "on mat", "dog run far"])
    file = runs / "ctc_ngram" / "seed1" / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "language_model": "lm.arpa"}))
    text = report.report(runs, to=tmp_path / "here")
    assert "greedy decoding, with a language model for ctc_ngram, of the checkpoint" in text
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"report.md", "report.json", "dev_wer.svg"}
    assert {path.name for path in runs.iterdir()} == {"ctc", "ctc_ngram"}
    assert "greedy decoding of the" in report.report(runs, ["ctc"], to=tmp_path / "here")


def test_each_of_many_lines_looks_otherwise():
    assert len({tuple(report.line_of(number).values()) for number in range(40)}) == 40


def test_the_reports_numbers_by_hand(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])  # 1 + 1 + 2 of 10 words
    scored(tmp_path / "ctc" / "seed2", ["the cat sad", "on mat", "a dog ran far"])  # 1 + 1 + 0
    scored(tmp_path / "comat" / "seed1", ["the cat sat", "on the mat", "a dig ran far"])  # 0 + 0 + 1
    runs = records.read_runs(tmp_path, first=report.BASELINES)
    found = report.summary(runs)
    assert list(found) == ["ctc", "comat"]
    assert found["ctc"]["test_wer"] == pytest.approx({"mean": 0.3, "sd": 0.1 * 2**0.5, "seeds": 2})
    assert found["comat"]["test_wer"] == {"mean": 0.1, "sd": None, "seeds": 1}
    assert found["comat"]["test_cer"]["mean"] == pytest.approx(1 / 34)
    # seed 1 alone has both, and there 4 of 10 words were wrong
    assert found["comat"]["against"]["ctc"]["change"] == pytest.approx(0.1 / 0.4 - 1)
    assert dict(found["comat"]["mended"]) == {"sat": 1, "the": 1, "a": 1, "ran": 1}
    assert found["comat"]["broken"] == [("dog", -1)]
    scored(tmp_path / "comat" / "seed2", ["the cat sat", "on the mat", "a dog ran far"])
    found = report.summary(records.read_runs(tmp_path, first=report.BASELINES))
    assert found["comat"]["against"]["ctc"]["change"] == pytest.approx(0.05 / 0.3 - 1)
    # "sat" and "the" were wrong in both ctc runs, "a" and "ran" in one of them
    assert dict(found["comat"]["mended"]) == {"sat": 1, "the": 1, "a": 0.5, "ran": 0.5}
    assert found["comat"]["broken"] == [("dog", -0.5)]
    scored(tmp_path / "comat" / "seed3", ["the cat sat", "on the mat", "a dog ran far"])
    assert "), 2 of the seeds |" in report.report(tmp_path)
    for seed in ("seed2", "seed3"):
        shutil.rmtree(tmp_path / "comat" / seed)
    assert [row["val_wer"] for row in runs["ctc"][0]["history"]] == [0.8, 0.5]
    for row in runs["comat"][0]["history"]:
        del row["step_seconds"]  # as where an epoch has one step
    assert report.table(report.summary(runs))[1][-3:] == ["", "1.00", ""]
    (tmp_path / "train.json").write_text(json.dumps({"text": 5 * "the " + "sat on mat a far"}) + "\n")
    text = report.report(tmp_path, data=tmp_path)
    # of both ctc runs' 20 words 14 are right; cat, dog and ran are new: 6, of which ran was wrong once; "the" comes
    # four times, and is wrong twice; of the other ten "sat" is wrong twice and "a" once
    assert "| arm | right | added | never in training (30 %) | 1 to 4 times (50 %) | 5 to 19 times (20 %) |" in text
    assert "| ctc | 70.0 % | 0.0 % | 83.3 % | 70.0 % | 50.0 % | 0.0 % | 0.0 % |" in text
    assert "| ctc | 2 | 30.0 ± 14.1 % |" in text and "3 utterances, 10 words" in text
    assert {"report.md", "report.json", "dev_wer.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert "| ctc | 1 | 40.0 % | 40.0 % |" in report.report(tmp_path, seeds=[1])


def test_what_dev_costs_and_added_words_are_by_hand(tmp_path):
    right = ["the cat sat", "on the mat", "a dog ran far"]
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    heard = ["the cat sat down", "on mat", "a dog ran far"]
    scored(tmp_path / "comat" / "seed1", heard, dev=right, step_seconds=0.2, peak_bytes=30, train_active_fraction=0.5)
    history = tmp_path / "comat" / "seed1" / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    # steps of 0.2, 0.2 and 9 seconds; the run's largest memory is that of its second validation; and one step later
    rows += [{"step": 6, "val_wer": 0.4, "step_seconds": 9.0, "peak_bytes": 20, "train_active_fraction": 0.8}]
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "comat" / "seed2").mkdir()  # not scored yet
    (tmp_path / "comat" / "seed2" / "run.json").write_text("{}")
    found = report.summary(records.read_runs(tmp_path, first=report.BASELINES))["comat"]
    assert found["dev_wer"]["mean"] == 0 and found["test_wer"]["mean"] == pytest.approx(0.2)
    assert found["words"] == pytest.approx({"right": 0.9, "added": 0.1})
    against = found["against"]["ctc"]
    assert against["low"] < against["change"] < against["high"]
    text = report.report(tmp_path)
    assert "| comat | 1 | 0.0 % | 20.0 % |" in text and "| 2.00 | 3.00 | 0.60 |" in text
    # a seed that was validated at other steps
    scored(tmp_path / "ctc" / "seed2", right)
    history = tmp_path / "ctc" / "seed2" / "history.jsonl"
    history.write_text(history.read_text().replace('"step": 4', '"step": 6'))
    assert "| ctc | 2 |" in report.report(tmp_path)


def test_runs_are_compared_with_those_that_are_named(tmp_path, monkeypatch, capsys):
    scored(tmp_path / "ctc" / "seed1", ["the cat sat", "on the mat", "a dog ran far"])
    scored(tmp_path / "default" / "seed1", ["the cat sad", "on mat", "dog run far"])
    scored(tmp_path / "mine" / "seed1", ["the cat sat", "on the mat", "a dig run far"])
    command = ["report.py", "default", "mine", f"--out={tmp_path}", "--against", "default"]
    monkeypatch.setattr(sys, "argv", [*command, f"--html={tmp_path}/report.html"])
    report.main()
    text = capsys.readouterr().out
    assert "| against default | step |" in text and "| mine | 1 | 20.0 % | 20.0 % |" in text and "| -50.0 % (" in text
    assert "are ratios to default, where both were" in text and "mine, most often mended against default: " in text
    assert "against ctc" not in text + (tmp_path / "report.html").read_text()
    monkeypatch.setattr(sys, "argv", [*command, "ctc"])
    with pytest.raises(SystemExit, match="--against ctc: .* has no such finished run .* it has default, mine"):
        report.main()


def test_runs_of_different_test_sets_are_not_compared(tmp_path):
    references = ["the cat sat", "on the mat", "a dog ran far"]
    scored(tmp_path / "ctc" / "seed1", references)
    scored(tmp_path / "comat" / "seed3", references[::-1], references[::-1])
    with pytest.raises(ValueError, match="^comat seed 3 was scored on another dev set than ctc seed 1; ") as error:
        report.report(tmp_path)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "comat")
    scored(tmp_path / "ctc" / "seed2", references[:2], references[:2])
    with pytest.raises(ValueError, match="ctc seed 2 was scored on another dev set than ctc seed 1"):
        report.report(tmp_path)
    report.report(tmp_path, seeds=[2])


def test_training_without_texts_has_none_of_the_words(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    (tmp_path / "train.json").write_text(json.dumps({"text": ""}) + "\n")
    assert "never in training (100 %)" in report.report(tmp_path, data=tmp_path)


def test_the_page_has_the_table_and_what_the_best_arm_heard(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    scored(tmp_path / "comat" / "seed1", ["the cat sat", "on the mat", "a dig ran far"])
    (tmp_path / "train.json").write_text(json.dumps({"text": "the sat"}) + "\n")
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "test.json").write_text("".join(json.dumps({"audio_filepath": "a.wav"}) + "\n" for _ in range(3)))
    report.report(tmp_path, data=tmp_path, html=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<dt>test WER, comat</dt><dd>10.0 %</dd>" in page and "<td>40.0 %</td>" in page
    assert "<del>dog</del>" in page and "<ins>dig</ins>" in page and "<ins>sad</ins>" not in page
    assert page.count("data:audio/wav;base64,c291bmQ=") == 3 and "data:image/svg+xml" in page
    assert "comat, most often mended against ctc: " in page
    (tmp_path / "a.wav").unlink()
    with pytest.raises(FileNotFoundError, match="a.wav"):
        report.report(tmp_path, data=tmp_path, html=tmp_path / "report.html")
    report.report(tmp_path, html=tmp_path / "report.html")
    assert "<audio" not in (tmp_path / "report.html").read_text()


def test_the_interval_covers_what_it_should():
    rng = np.random.default_rng(1)
    lengths = np.full(400, 10)
    same = np.stack([rng.binomial(10, 0.3, 400), lengths], 1)
    assert word_errors.paired_interval([same], [same]) == (0, 0, 0)
    # truly 20 % fewer errors: the interval holds it in about 95 of 100 draws of the utterances
    held = 0
    for _ in range(100):
        difficulty = rng.beta(2, 5, 400)
        theirs = np.stack([rng.binomial(10, difficulty), lengths], 1)
        ours = np.stack([rng.binomial(10, 0.8 * difficulty), lengths], 1)
        change, low, high = word_errors.paired_interval([ours], [theirs], draws=500)
        assert low < change < high
        held += low < -0.2 < high
    assert 88 <= held <= 99
    # one error in each of theirs and in every second of ours: the errors that are drawn are binomial
    theirs = np.ones((400, 2))
    ours = np.stack([np.arange(400) % 2, np.ones(400)], 1)
    change, low, high = word_errors.paired_interval([ours], [theirs])
    assert (change, low, high) == pytest.approx((-0.5, -0.549, -0.451), abs=0.003)


def test_curves_are_of_runs_that_were_trained_and_the_settings_are_all_of_them(tmp_path):
    for name, steps in (("ctc", 4), ("ctc_ngram", 4), ("long", 6)):
        scored(tmp_path / name / "seed1", ["the cat sad", "on mat", "dog run far"])
        history = tmp_path / name / "seed1" / "history.jsonl"
        history.write_text(history.read_text().replace('"step": 4', f'"step": {steps}'))
    of_run = tmp_path / "ctc_ngram" / "seed1" / "run.json"
    of_run.write_text(json.dumps({**json.loads(of_run.read_text()), "language_model": {"file": "lm.arpa"}}))
    text = report.report(tmp_path, html=tmp_path / "report.html")
    drawn, page = ((tmp_path / name).read_text() for name in ("dev_wer.svg", "report.html"))
    assert "Encoder of 1.0 M parameters, 4 or 6 steps; CPU; commit abc." in text and "| ctc_ngram | 1 |" in text
    assert ">long<" in drawn and "ngram" not in drawn and "data:image/svg+xml" in page
    # an n-gram's alone
    report.report(tmp_path, ["ctc_ngram"], html=tmp_path / "report.html", against=["ctc_ngram"])
    assert "data:image/svg+xml" not in (tmp_path / "report.html").read_text()


def test_a_report_that_cannot_draw_says_so_before_the_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    scored(tmp_path / "ctc" / "seed1", ["the cat sad", "on mat", "dog run far"])
    monkeypatch.setattr(sys, "argv", ["report.py", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match=r"^Curves need matplotlib: pip install 'nemo_comat\[demo\]'$"):
        report.main()


def test_without_runs_the_report_says_so(tmp_path):
    with pytest.raises(ValueError, match="no finished and scored run"):
        report.report(tmp_path)


def test_test_sets_that_differ_alone_are_not_compared(tmp_path):
    for name in ("ctc", "comat"):
        scored(tmp_path / name / "seed1", ["the cat sat", "on the mat", "a dog ran far"])
    file = tmp_path / "comat" / "seed1" / "test.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    with pytest.raises(ValueError, match="^comat seed 1 was scored on another test set than ctc seed 1; "):
        report.report(tmp_path)


def test_transcripts_never_stand_beside_other_audio(tmp_path):
    scored(tmp_path / "ctc" / "seed1", ["the cat sat", "on the mat", "a dog ran far"])
    (tmp_path / "train.json").write_text(json.dumps({"text": "a"}) + "\n")
    (tmp_path / "test.json").write_text(2 * (json.dumps({"audio_filepath": "a.wav"}) + "\n"))
    with pytest.raises(ValueError, match=r"test.json has 2 rows, but 3 were scored; give the --data of these runs"):
        report.report(tmp_path, data=tmp_path, html=tmp_path / "report.html")


def test_the_seeds_that_are_named_are_kept_in_the_same_bytes_each_time(tmp_path):
    for seed in (1, 2):
        scored(tmp_path / "runs" / "ctc" / f"seed{seed}", ["the cat sat", "on the mat", "a dog ran far"])
    records.keep(tmp_path / "runs", ["ctc"], tmp_path / "kept", [1])
    assert [folder.name for folder in (tmp_path / "kept" / "ctc").iterdir()] == ["seed1"]
    # the time in gzip's header
    assert (tmp_path / "kept" / "ctc" / "seed1" / "test.json.gz").read_bytes()[4:8] == bytes(4)


def test_of_many_words_those_that_changed_most_are_named():
    said = "a b c d e f g h i j k l m"
    ours, theirs = ([[{"reference": said, "transcript": heard}]] for heard in (said[:-2], "m"))
    mended, broken = word_errors.mended_and_broken(ours, theirs)
    assert len(mended) == 10 and broken == [("m", -1)]
