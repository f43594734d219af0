"""Embeds the texts of a training config once, so that training with model.comat.teacher.cache needs no teacher.

    python examples/cache_teacher.py --config-name=conformer_ctc_comat model.comat.teacher.cache=CACHE \
        model.train_ds.manifest_filepath=train.json model.tokenizer.dir=tokenizer
    torchrun --nproc_per_node=8 examples/cache_teacher.py …    # the same on 8 GPUs

Takes training's own config and overrides, so that texts, tokenizer and teacher are those of training. Reads NeMo's
manifests, tarred ones too, and all that Lhotse reads, without the audio. Each distinct text is embedded once; a run
that was stopped goes on where it was, and new texts are added by running it again. Then train with the same overrides.
"""

import os
import sys
import tarfile
from datetime import timedelta

from nemo_comat.waiting import announce_nemo

if __name__ == "__main__":
    announce_nemo()

import torch
from nemo.collections.asr.parts.mixins import ASRBPEMixin
from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config
from nemo.collections.common.tokenizers.aggregate_tokenizer import TokenizerWrapper
from nemo.core.config import hydra_runner
from nemo.utils import logging
from omegaconf import OmegaConf
from speech_to_text_comat import check_data, complete
from tqdm import tqdm

from nemo_comat import ConfigError, TeacherError, write_cache, write_index
from nemo_comat.config import read_comat_config, teacher_arguments
from nemo_comat.models.characters import CharacterTokenizer
from nemo_comat.models.finetune import recogniser_tokenizer
from nemo_comat.models.finetune_config import allow_init_from, starts_from_file
from nemo_comat.models.lhotse_manifest import multi_blocks
from nemo_comat.models.manifest import manifest_paths
from nemo_comat.models.reference import manifest_text, reference_text
from nemo_comat.models.rows import ManifestError, expand, read_rows
from nemo_comat.models.tokenizer_folder import tokenizer_errors
from nemo_comat.models.training_config import by_characters
from nemo_comat.output import one_sentence
from nemo_comat.teacher import build_teacher


class Tokenizer(ASRBPEMixin):
    """The recogniser's tokenizer, without the recogniser."""

    def __init__(self, cfg):
        self._setup_tokenizer(cfg)

    def register_artifact(self, config_path, src, verify_src_exists=True):
        """NeMo's models pack their tokenizer's files; nothing is packed here."""
        return src


def tokenizer_of(cfg):
    """The tokenizer of a training config, or the labels of a character model's."""
    if starts_from_file(cfg):
        return recogniser_tokenizer(cfg)
    if by_characters(cfg):
        return CharacterTokenizer.of(cfg.model.labels, cfg.model.train_ds)
    with tokenizer_errors():
        return Tokenizer(cfg.model.tokenizer).tokenizer


def texts_of(dataset, tokenizer, text="tokens"):
    """Texts of a ``train_ds`` block as training gives them to the teacher.

    Args:
        dataset: DictConfig. tokenizer: the recogniser's. text: comat.teacher.text.
    Yields:
        str: encoded and decoded by the tokenizer, or as they stand.
    """
    encode = TokenizerWrapper(tokenizer)
    for where, parts in transcripts(dataset):
        try:
            # a string that is read as it stands need not be encoded; anything else, training would encode
            encoded = parts if text == "tokens" else [part for part in parts if not isinstance(part[0], str)]
            ids = [int(i) for part in encoded for i in token_ids(encode, *part)]
            said = reference_text(tokenizer, ids) if text == "tokens" else manifest_text(part for part, *_ in parts)
        except Exception as error:  # of any tokenizer
            raise ManifestError(
                f"{where} has a text that the tokenizer cannot read, {parts!r} ({type(error).__name__}: {error}); give "
                "a string, and a lang of the tokenizer's where it has several."
            ) from error
        yield said


def token_ids(encode, text, lang, tokens):
    """Token ids of one part of an utterance: the manifest's own, or its text's."""
    return tokens if tokens is not None else encode(text, lang) if text != "" else []


def transcripts(dataset):
    """Pairs of where an utterance is from, and its list of (text, language or None, token ids or None)."""
    if dataset.get("use_lhotse"):
        for block in multi_blocks(dataset):
            for cut in cuts_of(block):
                # Lhotse's dataset reads a text that is null as an empty one
                said = [(s.text or "", s.language, getattr(s, "tokens", None)) for s in cut.supervisions]
                yield f"Cut {cut.id}", said
        return
    paths = manifest_paths(dataset)
    if not paths or "hf_data_cfg" in dataset:
        raise ConfigError(
            "model.train_ds names no manifests, whose texts could be cached without their audio; train without "
            "model.comat.teacher.cache."
        )
    for path in paths:
        for file in expand(path):
            for row in read_rows(file):
                text, lang, labels = (row.item[key] for key in ("text", "lang", "token_labels"))
                yield row.where, spans_of(text) or [(text, lang, labels)]


def cuts_of(block, metadata_only=True):
    """Lhotse's cuts of a block; some come twice where only their audio says how long they are."""
    options = {**OmegaConf.to_container(block), "metadata_only": metadata_only, "force_finite": True}
    try:
        yield from read_cutset_from_config(OmegaConf.create(options))[0]
    except TypeError:  # of a manifest's duration that is null or a string, for which training opens the audio
        if not metadata_only:
            raise
        yield from cuts_of(block, metadata_only=False)


def spans_of(text):
    """The parts of a text that is a list of one-language spans; None for any other."""
    spans = isinstance(text, list) and all(isinstance(span, dict) and {"str", "lang"} <= span.keys() for span in text)
    return [(span["str"], span["lang"], None) for span in text] if spans else None


def place(cfg):
    """This process's rank, number of processes, and device: as torchrun sets them, or else the only one."""
    defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    rank, world_size, local = (int(os.environ.get(key, value)) for key, value in defaults.items())
    gpu = torch.cuda.is_available() and OmegaConf.select(cfg, "trainer.accelerator") != "cpu"
    return rank, world_size, f"cuda:{local}" if gpu else "cpu"


def fill(cfg):
    """Writes the cache of a config; returns the number of texts in it, or None on all ranks but the first."""
    if OmegaConf.select(cfg, "model.comat") is None:
        raise ConfigError("model.comat is missing; give training's config, with its comat block.")
    comat = read_comat_config(cfg.model.comat)
    block = comat.teacher
    if block.cache is None:
        raise ConfigError("model.comat.teacher.cache is missing; give model.comat.teacher.cache=FOLDER to write to.")
    rank, world_size, device = place(cfg)
    complete(cfg)
    if rank == 0:
        check_data(cfg)
    folder, block.cache = block.cache, None
    teacher, tokenizer = build_teacher(**teacher_arguments(block, comat.transfer)), tokenizer_of(cfg)
    texts = texts_of(cfg.model.train_ds, tokenizer, block.text)
    if world_size > 1:
        # whoever is done first waits for the slowest
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    options = dict(device=device, rank=rank, world_size=world_size)
    with tqdm(desc=f"rank {rank}" if world_size > 1 else None, unit="text") as bar:
        for count in write_cache(folder, teacher, texts, **options):
            bar.update(count)
    if world_size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return write_index(folder) if rank == 0 else None


@hydra_runner(config_path="../conf", config_name="conformer_ctc_comat")
def main(cfg):
    """Writes the cache."""
    try:
        texts = fill(cfg)
    except (ConfigError, ManifestError, TeacherError, OSError, tarfile.ReadError) as error:
        logging.error(one_sentence(error))
        sys.exit(1)
    if texts is not None:
        logging.info(f"{cfg.model.comat.teacher.cache} holds {texts} texts; train with the same overrides.")


if __name__ == "__main__":
    sys.argv = allow_init_from(sys.argv)
    main()
