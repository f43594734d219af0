"""A few utterances in each form that NeMo reads, with audio; their texts have capitals and punctuation.

The recogniser's tokenizer of the demo corpus knows neither, so a text that went through it differs from the manifest's.
"""

import json
import tarfile

import soundfile

# train_ds blocks by name; FOLDER is what `write_data` filled
PLAIN = {"manifest_filepath": "FOLDER/train.json"}
TARRED = {
    "is_tarred": True,
    "manifest_filepath": "FOLDER/tarred.json",
    "tarred_audio_filepaths": "FOLDER/audio__OP_0..1_CL_.tar",
}
BUCKETS = {
    "is_tarred": True,
    "manifest_filepath": [["FOLDER/manifest_0.json"], ["FOLDER/manifest_1.json"]],
    "tarred_audio_filepaths": [["FOLDER/audio_0.tar"], ["FOLDER/audio_1.tar"]],
}
CONCAT = {"is_concat": True, "concat_sampling_technique": "round-robin"}
HALVES = {"manifest_filepath": ["FOLDER/manifest_0.json", "FOLDER/manifest_1.json"]}
LHOTSE = {"use_lhotse": True, "manifest_filepath": "FOLDER/train.json"}
# a small buffer: Lhotse fills it from tarred data, which never end, before the first batch
ENDLESS = {"use_lhotse": True, "shuffle_buffer_size": 16}
LHOTSE_TARRED = {**TARRED, **ENDLESS, "manifest_filepath": "FOLDER/manifest__OP_0..1_CL_.json"}
LHOTSE_OTHER = {"use_lhotse": True, "manifest_filepath": None}

# NeMo's readers whose samples have names of their own
NAMED = {
    "manifest": PLAIN,
    "several manifests": HALVES,
    "semi sorted": {**PLAIN, "use_semi_sorted_batching": True, "drop_last": False},
    "sample ids": {**PLAIN, "return_sample_id": True},
    "tarred": TARRED,
    "tarred by workers": {**TARRED, "num_workers": 2},
    "tarred one bucket": {
        **TARRED,
        "manifest_filepath": [["FOLDER/tarred.json"]],
        "tarred_audio_filepaths": [[TARRED["tarred_audio_filepaths"]]],
    },
}
# those that put several readers behind one another
UNNAMED = {
    "concat": {**HALVES, **CONCAT},
    "concat by temperature": {**HALVES, **CONCAT, "concat_sampling_technique": "temperature"},
    "concat tarred": {**BUCKETS, **CONCAT},
    "buckets synced": {**BUCKETS, "bucketing_strategy": "synced_randomized"},
    "buckets in order": {**BUCKETS, "bucketing_strategy": "fixed_order"},
    "buckets randomized": {**BUCKETS, "bucketing_strategy": "fully_randomized"},
    "buckets adaptive": {**BUCKETS, "bucketing_batch_size": 2, "batch_size": 1},
    "buckets adaptive by list": {
        **BUCKETS,
        "bucketing_batch_size": [4, 3],
        "batch_size": 1,
        "bucketing_strategy": "fixed_order",
    },
}
BY_LHOTSE = {
    "lhotse": LHOTSE,
    "lhotse by a worker": {**LHOTSE, "num_workers": 1},
    "lhotse without pretokenizing": {**LHOTSE, "pretokenize": False},
    "lhotse batch duration": {**LHOTSE, "batch_size": None, "batch_duration": 12},
    "lhotse buckets": {
        **LHOTSE, "batch_size": None, "batch_duration": 12, "use_bucketing": True, "num_buckets": 2,
        "bucket_duration_bins": [3.0],
    },
    "lhotse bucket sizes": {
        **LHOTSE, "batch_size": None, "use_bucketing": True, "bucket_duration_bins": [3.0, 9.0],
        "bucket_batch_size": [4, 2],
    },
    "lhotse tarred": LHOTSE_TARRED,
    "lhotse tarred by a worker": {**LHOTSE_TARRED, "num_workers": 1},
    "lhotse cuts": {**LHOTSE_OTHER, "cuts_path": "FOLDER/cuts.jsonl.gz"},
    "lhotse shar": {**LHOTSE_OTHER, **ENDLESS, "shar_path": "FOLDER/shar"},
    "lhotse input_cfg": {**LHOTSE_OTHER, "input_cfg": [{"type": "nemo", "manifest_filepath": "FOLDER/train.json"}]},
}  # fmt: skip
FORMS = {**NAMED, **UNNAMED, **BY_LHOTSE}


def written_text(text):
    """A spoken text as it is written: "the zebra crossed the river" is "The, zebra crossed the River."."""
    first, *middle, last = text.split()
    return " ".join([first.capitalize() + ",", *middle, last.capitalize() + "."])


def block(name, folder):
    """A ``train_ds`` block of FORMS over the data in a folder."""
    return at(FORMS[name], folder)


def at(form, folder):
    """A form with FOLDER replaced."""
    return json.loads(json.dumps(form).replace("FOLDER", str(folder)))


def write_data(folder, rows):
    """Fills a folder with what FORMS name.

    Args:
        folder: Path. rows: manifest rows with absolute audio paths.
    Returns:
        manifest rows as written, with `samples`, their audio's length.
    """
    rows = [_write_audio(folder, number, row) for number, row in enumerate(rows)]
    _write_manifest(folder / "train.json", rows)
    shards = [rows[shard::2] for shard in (0, 1)]
    for number, shard in enumerate(shards):
        _write_manifest(folder / f"manifest_{number}.json", shard)
        with tarfile.open(folder / f"audio_{number}.tar", "w") as tar:
            for row in shard:
                tar.add(folder / row["audio_filepath"], row["audio_filepath"])
    _write_manifest(folder / "tarred.json", [row for shard in shards for row in shard])
    _write_cuts(folder, rows)
    return rows


def _write_audio(folder, number, row):
    audio, rate = soundfile.read(row["audio_filepath"])
    name = f"utterance{number:02d}.wav"
    soundfile.write(folder / name, audio, rate)
    return {
        "audio_filepath": name,
        "duration": len(audio) / rate,
        "text": written_text(row["text"]),
        "lang": ("en", "de")[number % 2],
        "shard_id": number % 2,
        "samples": len(audio),
    }


def _write_manifest(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_cuts(folder, rows):
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    cuts = []
    for number, row in enumerate(rows):
        recording = Recording.from_file(folder / row["audio_filepath"], recording_id=f"{number}")
        said = SupervisionSegment(
            f"{number}", f"{number}", 0, recording.duration, text=row["text"], language=row["lang"]
        )
        cuts.append(MonoCut(f"{number}", 0, recording.duration, 0, recording=recording, supervisions=[said]))
    cuts = CutSet.from_cuts(cuts)
    cuts.to_file(folder / "cuts.jsonl.gz")
    (folder / "shar").mkdir()
    cuts.to_shar(folder / "shar", fields={"recording": "wav"}, shard_size=8)
