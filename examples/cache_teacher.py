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

from nemo_comat.waiting import announce_nemo

if __name__ == "__main__":
    announce_nemo()

import torch
from nemo.collections.asr.data.audio_to_text import expand_sharded_filepaths
from nemo.collections.asr.parts.mixins import ASRBPEMixin
from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config
from nemo.collections.common.parts.preprocessing.manifest import item_iter
from nemo.collections.common.tokenizers.aggregate_tokenizer import TokenizerWrapper
from nemo.core.config import hydra_runner
from nemo.utils import logging
from omegaconf import OmegaConf
from speech_to_text_comat import by_characters, check_data, complete
from tqdm import tqdm

from nemo_comat import CacheError, ConfigError, TeacherError, write_cache, write_index
from nemo_comat.config import read_comat_config, teacher_arguments
from nemo_comat.models.characters import CharacterTokenizer
from nemo_comat.models.manifest import ManifestError, manifest_paths
from nemo_comat.models.reference import manifest_text, reference_text
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
    if by_characters(cfg):
        return CharacterTokenizer.of(cfg.model.labels, cfg.model.train_ds)
    return Tokenizer(cfg.model.tokenizer).tokenizer


def texts_of(dataset, tokenizer, text="tokens"):
    """Texts of a ``train_ds`` block as training gives them to the teacher.

    Args:
        dataset: DictConfig. tokenizer: the recogniser's. text: comat.teacher.text.
    Yields:
        str: encoded and decoded by the tokenizer, or as they stand.
    """
    encode = TokenizerWrapper(tokenizer)
    for parts in transcripts(dataset):
        if text == "manifest":
            yield manifest_text(part for part, *_ in parts)
        else:
            yield reference_text(tokenizer, [int(i) for part in parts for i in token_ids(encode, *part)])


def token_ids(encode, text, lang, tokens):
    """Token ids of one part of an utterance: the manifest's own, or its text's."""
    return tokens if tokens is not None else encode(text, lang) if text else []


def transcripts(dataset):
    """Lists of (text, language or None, token ids or None), one list an utterance."""
    if dataset.get("use_lhotse"):
        metadata = {**OmegaConf.to_container(dataset), "metadata_only": True, "force_finite": True}
        for cut in read_cutset_from_config(OmegaConf.create(metadata))[0]:
            yield [(s.text, s.language, getattr(s, "tokens", None)) for s in cut.supervisions]
        return
    for path in manifest_paths(dataset):
        for file in expand_sharded_filepaths(path, shard_strategy="replicate", world_size=1, global_rank=0):
            for item in item_iter(file):
                if isinstance(item["text"], list):
                    yield [(span["str"], span["lang"], None) for span in item["text"]]
                else:
                    yield [(item["text"], item["lang"], item["token_labels"])]


def place(cfg):
    """This process's rank, number of processes, and device: as torchrun sets them, or else the only one."""
    defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    rank, world_size, local = (int(os.environ.get(key, value)) for key, value in defaults.items())
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    return rank, world_size, f"cuda:{local}" if gpu else "cpu"


def fill(cfg):
    """Writes the cache of a config; returns the number of texts in it, or None on all ranks but the first."""
    block = read_comat_config(cfg.model.comat).teacher
    if block.cache is None:
        raise ConfigError("model.comat.teacher.cache is missing; give model.comat.teacher.cache=FOLDER to write to.")
    rank, world_size, device = place(cfg)
    complete(cfg)
    if rank == 0:
        check_data(cfg)
    folder, block.cache = block.cache, None
    teacher, tokenizer = build_teacher(**teacher_arguments(block)), tokenizer_of(cfg)
    texts = texts_of(cfg.model.train_ds, tokenizer, block.text)
    if world_size > 1:
        torch.distributed.init_process_group("gloo")
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
    except (CacheError, ConfigError, ManifestError, TeacherError, OSError) as error:
        logging.error(one_sentence(error))
        sys.exit(1)
    if texts is not None:
        logging.info(f"{cfg.model.comat.teacher.cache} holds {texts} texts; train with the same overrides.")


if __name__ == "__main__":
    main()
