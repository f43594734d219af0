"""NeMo's CTC model with COMAT: only the wiring.

The logic is in a mixin, so that another CTC model of NeMo's becomes one of ours by inheriting it first.
"""

import math
from contextlib import contextmanager

import torch
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE, EncDecHybridRNNTCTCBPEModel
from nemo.core.classes import common
from nemo.utils import logging, model_utils
from omegaconf import open_dict

from nemo_comat.comat import CompressAlignTransfer
from nemo_comat.config import ConfigError, read_comat_config, teacher_arguments
from nemo_comat.models.audio import read_audio
from nemo_comat.models.characters import CharacterTokenizer
from nemo_comat.models.checkpoint import COMAT_PREFIX, ComatSaveRestoreConnector, class_path, with_comat
from nemo_comat.models.reference import manifest_text, manifest_texts, name_samples, reference_texts
from nemo_comat.models.safe_load import allow_settings, check_checkpoint
from nemo_comat.teacher import Pending, build_teacher
from nemo_comat.transfer import REDUCTIONS, reduce_rows
from nemo_comat.views.description import describe
from nemo_comat.views.first_batch import first_batch_warnings
from nemo_comat.views.pictures import AlignmentPictures
from nemo_comat.views.plot import Alignment

# NeMo 3.0 restores only classes below prefixes that it knows
if "nemo_comat." not in getattr(common, "ALLOWED_TARGET_PREFIXES", ["nemo_comat."]):
    common.ALLOWED_TARGET_PREFIXES.append("nemo_comat.")

# a sample's most, as large as 32-bit integers that were not scaled; the spectrogram of a larger one may overflow
LOUDEST = 2.0**31


@contextmanager
def captured(**modules):
    """Keeps the first output of each module that is called inside the block; InterCTC calls the decoder again.

    Args:
        modules: a module for each name.
    Yields:
        dict from name to output, filled while the block runs.
    """
    seen = {}

    def keep_first(name):
        def hook(module, args, output):
            seen.setdefault(name, output)

        return hook

    handles = [module.register_forward_hook(keep_first(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _as_config_error():
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"model.comat: {error}.") from None


class ComatMixin:
    """Adds the COMAT loss to a CTC model of NeMo's whose config has a ``comat`` block; changes nothing without one.

    The model needs an `encoder`, a CTC decoder and a `training_step` that calls both and returns a dict with `loss`.
    """

    def __init__(self, cfg, trainer=None):
        cfg = model_utils.convert_model_config_to_dict_config(cfg)
        teacher = _complete(cfg, self._ctc_config)
        super().__init__(cfg=cfg, trainer=trainer)
        allow_settings()
        self._save_restore_connector = ComatSaveRestoreConnector()
        with open_dict(self._cfg):
            self._cfg.target = class_path(type(self))
        self.comat, self._teacher, self._started, self._is_first_batch = None, teacher, None, True
        if teacher is not None:
            block = self._cfg.comat
            feat_in = self._feat_in()
            # our random numbers are drawn aside: the student's data order and dropout stay those of plain CTC
            with torch.random.fork_rng(devices=[]), _as_config_error():
                self.comat = CompressAlignTransfer(
                    feat_in,
                    self._ctc_decoder().num_classes_with_blank - 1,
                    **{step: block[step] for step in ("compress", "align", "projection", "transfer")},
                )

    def setup_training_data(self, train_data_config):
        """As NeMo's; where the teacher reads the manifest's texts, training batches say which samples they hold."""
        super().setup_training_data(train_data_config)
        if self._reads_manifest and self._train_dl is not None:
            name_samples(self._train_dl)

    def change_vocabulary(self, *args, **kwargs):
        """As NeMo's; what COMAT has learnt stays, and it follows the new blank."""
        super().change_vocabulary(*args, **kwargs)
        if self.comat is not None:
            self.comat.set_blank(self._ctc_decoder().num_classes_with_blank - 1)

    def configure_callbacks(self):
        """As Lightning's, and the pictures of alignments."""
        ours = [] if self.comat is None else [AlignmentPictures(self._cfg.comat.pictures)]
        return [*super().configure_callbacks(), *ours]

    def on_train_start(self):
        """As NeMo's; says in the log what will be learnt from where."""
        logging.info(describe(self))
        self._is_first_batch = True
        super().on_train_start()

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """As Lightning's; the teacher is started on a training batch's texts while they are still on the host."""
        started = None
        if self.comat is not None and self.training and isinstance(batch, (tuple, list)):
            started = Pending(self._teacher, self._reference_texts(*batch[2:]), torch.device(device))
            batch = batch[:4]
        batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._started = started and (batch[2], started)
        return batch

    def training_step(self, batch, batch_nb):
        """NeMo's step, plus the weighted transfer loss and what it logs."""
        if self.comat is None:
            return super().training_step(batch, batch_nb)
        # NeMo's step takes four items; DALI's batches have no more, and must stay what they are
        samples = batch[4:5] if len(batch) > 4 else ()
        batch, bad_audio = _silence_bad_audio(batch[:4] if samples else batch)
        with captured(**self._watched()) as seen:
            step = super().training_step(batch, batch_nb)
        *_, transcript, transcript_len = batch
        pending = self._pending(transcript, transcript_len, *samples)
        teacher = pending.result()
        teacher = teacher._replace(text_len=torch.where(bad_audio, 0, teacher.text_len))
        output = self._comat_output(seen, transcript, transcript_len, teacher)
        if self._is_first_batch:
            self._is_first_batch = False
            for warning in first_batch_warnings(pending.texts, self._teacher, teacher, output, bad_audio):
                logging.warning(warning)
        reduction = self._ctc_config(self._cfg).get("ctc_reduction", "mean_batch")
        transfer = reduce_rows(output.loss, output.text_len, reduction)
        # out of place: NeMo logs the very tensor that step["loss"] holds
        ctc_loss, weight = step["loss"], self.comat_weight
        step["loss"] = ctc_loss + weight * transfer
        logged = dict(
            train_loss=step["loss"],
            train_ctc_loss=ctc_loss,
            train_transfer_loss=transfer,
            train_active_fraction=output.active.float().mean(),
            train_alignment_score=output.alignment_score,
            train_text_too_long=teacher.too_long.float().sum(),
            train_bad_audio=bad_audio.float().sum(),
            comat_weight=weight,
        )
        if self._cfg.comat.teacher.cache is not None:
            logged["train_cache_misses"] = float(teacher.lacking)
        if self._cfg.comat.compress.method == "cif":
            logged["train_quantity_loss"] = reduce_rows(output.compressed.loss, output.text_len, reduction)
        self._log(step, logged)
        return step

    @property
    def comat_weight(self):
        """Weight of the transfer loss at this step: linear from 0 to `weight` over `warmup_steps` optimizer steps."""
        weight, warmup = self._cfg.comat.weight, self._cfg.comat.warmup_steps
        return weight * min(1.0, self.trainer.global_step / warmup) if warmup else weight

    def _feat_in(self):
        layer = self._cfg.comat.encoder_layer
        if layer is None:
            return self._ctc_config(self._cfg).decoder.feat_in
        depth = len(getattr(self.encoder, "layers", ()))
        if not -depth <= layer < depth:
            raise ConfigError(
                f"model.comat.encoder_layer is {layer}, but {type(self.encoder).__name__} has {depth} layers to choose "
                f"from, {f'0 to {depth - 1} or -1 to {-depth}' if depth else 'none'}; null takes the last frames."
            )
        return self._cfg.encoder.d_model

    def _watched(self):
        watched = dict(encoder=self.encoder, decoder=self._ctc_decoder())
        if self._cfg.comat.encoder_layer is not None:
            watched["layer"] = self.encoder.layers[self._cfg.comat.encoder_layer]
        return watched

    def _teacher_output(self, transcript, transcript_len, samples=None):
        return self._pending(transcript, transcript_len, samples).result()

    def _pending(self, transcript, transcript_len, samples=None):
        """What was started for this batch; where no trainer moved it to the device, it is started now."""
        (of, started), self._started = self._started or (None, None), None
        if of is not transcript:
            texts = self._reference_texts(transcript, transcript_len, samples)
            started = Pending(self._teacher, texts, transcript.device)
        return started

    def _comat_output(self, seen, transcript, transcript_len, teacher):
        encoded, encoded_len = seen["encoder"][:2]
        log_probs = seen["decoder"] if "decoder" in seen else self._ctc_decoder()(encoder_output=encoded)
        hidden = seen.get("layer", encoded.transpose(1, 2))
        # Lhotse's token ids are floats where every transcript of a batch is empty; NeMo's CTC loss casts them too
        return self.comat(hidden, encoded_len, log_probs, transcript.long(), transcript_len, teacher)

    @staticmethod
    def _ctc_config(cfg):
        return cfg

    def _ctc_decoder(self):
        return self.decoder

    def _log(self, step, numbers):
        step["log"].update(numbers)

    def _text_tokenizer(self):
        return self.tokenizer

    @property
    def _reads_manifest(self):
        block = self._cfg.get("comat")
        return block is not None and block.weight > 0 and block.teacher.text == "manifest"

    def _reference_texts(self, transcript, transcript_len, samples=None):
        if self._reads_manifest:
            return manifest_texts(self._train_dl, samples)
        return self.transcript_texts(transcript, transcript_len)

    def transcript_texts(self, transcript, transcript_len):
        """Texts of a batch's transcripts [B, U] with lengths [B], as the recogniser gives them back: list of str."""
        return reference_texts(self._text_tokenizer(), transcript, transcript_len)

    def reads_at_once(self, transcript, transcript_len):
        """Whether the teacher reads each row of a batch without loading weights: list of bool, of transcript [B, U]."""
        return [self._teacher.reads_at_once(text) for text in self.transcript_texts(transcript, transcript_len)]

    def read_audio(self, audio):
        """Reads an audio file as training did: at the model's sample rate, ``train_ds.channel_selector`` heeded.

        Args:
            audio: path.
        Returns:
            float32 [samples], on the CPU; several channels are averaged where the config names none of them.
        Raises:
            ValueError: the file cannot be read as audio, has no samples, or lacks the channel.
        """
        dataset = self._cfg.get("train_ds") or {}
        return read_audio(audio, self.preprocessor._sample_rate, dataset.get("channel_selector"))

    def align_text(self, audio, text):
        """Aligns one utterance's segments with the teacher's tokens of its text, to look at.

        Args:
            audio: path of an audio file, read by `read_audio`.
            text: what is said in it.
        Returns:
            nemo_comat.views.plot.Alignment.
        Raises:
            ValueError: COMAT is off in this model, the audio cannot be read or has no samples, or no alignment exists
                (more tokens than segments, or fewer frames than the text needs).
        """
        if self.comat is None:
            raise ValueError("This model has no active comat block, so there is nothing to align; train it with one.")
        signal = self.read_audio(audio).to(self.device)[None]
        ids = torch.tensor([self._text_tokenizer().text_to_ids(text)], dtype=torch.int64, device=self.device)
        signal_len, ids_len = (torch.tensor([x.shape[1]], device=self.device) for x in (signal, ids))
        read = manifest_text([text]) if self._reads_manifest else self.transcript_texts(ids, ids_len)[0]
        output, features = self._align(signal, signal_len, ids, ids_len, [read])
        if not output.active[0]:
            raise ValueError(
                f"{audio} has no alignment with {text!r}: {int(output.compressed.seg_len[0])} segments for "
                f"{output.score.shape[2]} tokens; is the text what is said?"
            )
        return self._read_alignment(output, features, 0, read)

    def alignments(self, signal, signal_len, transcript, transcript_len):
        """Aligns each row of a batch, to look at.

        Args:
            signal, signal_len: [B, samples] and [B]. transcript, transcript_len: [B, U] and [B].
        Returns:
            list of nemo_comat.views.plot.Alignment, None for a row that has none.
        """
        texts = self.transcript_texts(transcript, transcript_len)
        output, features = self._align(signal, signal_len, transcript, transcript_len, texts)
        active = output.active.tolist()
        return [self._read_alignment(output, features, i, t) if active[i] else None for i, t in enumerate(texts)]

    @torch.no_grad()
    def _align(self, signal, signal_len, transcript, transcript_len, texts):
        mode, _ = self.training, self.eval()
        try:
            with captured(**self._watched(), features=self.preprocessor) as seen:
                self.forward(input_signal=signal, input_signal_length=signal_len)
            teacher = self._teacher.encode(texts, signal.device)
            return self._comat_output(seen, transcript, transcript_len, teacher), seen["features"]
        finally:
            self.train(mode)

    def _read_alignment(self, output, features, row, text):
        segs, tokens = int(output.compressed.seg_len[row]), int(output.text_len[row])
        stride = self._cfg.preprocessor.window_stride
        seconds = stride * self.encoder.subsampling_factor
        frames = [(output.compressed.seg_of_frame[row] == s).nonzero()[:, 0] for s in range(segs)]
        # the last one is for the label -1, of segments that have none
        tokenizer = self._text_tokenizer()
        pieces = [*tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size))), "blank", ""]
        return Alignment(
            score=output.score[row, :segs, :tokens].cpu(),
            path=output.path[row, :segs].cpu(),
            tokens=self._teacher.tokens(text),
            labels=[pieces[i] for i in output.compressed.seg_label[row, :segs].tolist()],
            spans=[
                (int(f[0]) * seconds, (int(f[-1]) + 1) * seconds) if len(f) else (math.nan, math.nan) for f in frames
            ],
            features=features[0][row, :, : int(features[1][row])].float().cpu(),
            frame_seconds=stride,
        )

    def load_state_dict(self, state_dict, strict=True, *args, **kwargs):
        """As PyTorch's; a plain CTC model's weights are accepted whole, and ours are left out where COMAT is off."""
        ours = {key: value for key, value in self.state_dict().items() if key.startswith(COMAT_PREFIX)}
        theirs = {key for key in state_dict if key.startswith(COMAT_PREFIX)}
        if ours and not theirs:
            logging.info("These weights have no COMAT part: it keeps its present values.")
            state_dict = {**state_dict, **ours}
        if theirs and not ours:
            logging.info("COMAT is off in this model: the COMAT part of these weights is left out.")
            state_dict = {key: value for key, value in state_dict.items() if key not in theirs}
        return super().load_state_dict(state_dict, strict, *args, **kwargs)

    def save_to(self, save_path):
        """As NeMo's, as a dual ``.nemo``, whichever connector the model was given meanwhile."""
        self._save_restore_connector = with_comat(self._save_restore_connector)
        super().save_to(save_path)

    @classmethod
    def update_save_restore_connector(cls, save_restore_connector):
        """As NeMo's, with our part heeded: all of NeMo's ways into a ``.nemo`` file set their connector here."""
        super().update_save_restore_connector(with_comat(save_restore_connector))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path, *args, weights_only=True, **kwargs):
        """As NeMo's; weights_only=False reads a ``.ckpt`` whose pickles do more, of someone who is trusted."""
        if weights_only:
            check_checkpoint(checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)


def _silence_bad_audio(batch):
    """Turns rows of a batch whose audio has NaN, infinite or impossibly loud samples into silence that says nothing.

    One such row makes NeMo's loss NaN, and by it all weights and the statistics of batch norm. Nothing here waits for
    the device.
    """
    signal, signal_len, transcript, transcript_len = batch
    if not isinstance(batch, (tuple, list)):  # of DALI, whose class says more than its four tensors
        return batch, torch.zeros_like(transcript_len, dtype=torch.bool)
    bad = ~(signal.abs() <= LOUDEST).flatten(1).all(1)
    signal = torch.where(bad.view(-1, *[1] * (signal.dim() - 1)), 0, signal)
    batch = signal, signal_len, transcript, torch.where(bad, 0, transcript_len)
    return batch, bad


def _complete(cfg, ctc_config):
    """Checks and completes cfg.comat in place; returns the teacher (nothing loaded), or None where COMAT is off."""
    if cfg.get("comat") is None:
        return None
    block = read_comat_config(cfg.comat)
    teacher = build_teacher(**teacher_arguments(block.teacher)) if block.weight > 0 else None
    reduction = ctc_config(cfg).get("ctc_reduction", "mean_batch")
    if teacher is not None and reduction not in REDUCTIONS:
        raise ConfigError(f"model.ctc_reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
    if teacher is not None and block.projection.dim is None:
        block.projection.dim = teacher.dim
    with open_dict(cfg):
        cfg.comat = block
    return teacher


class ComatCTCModelBPE(ComatMixin, EncDecCTCModelBPE):
    """NeMo's `EncDecCTCModelBPE` trained with COMAT; configured, used, saved and restored as its parent.

    Args:
        cfg: NeMo's model config, with a ``comat`` block of `nemo_comat.config.ComatConfig`'s keys. Without the block,
            or with ``weight: 0``, it is plain CTC.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError: an unknown key or value in ``comat``; before any data or model is loaded.
        TeacherError: the teacher's config cannot be read.
    Source: COMAT, Computer Speech & Language 97, 2026, doi 10.1016/j.csl.2025.101900.
    """


class ComatCTCModel(ComatMixin, EncDecCTCModel):
    """NeMo's character model `EncDecCTCModel` trained with COMAT; configured, used, saved and restored as its parent.

    Args:
        cfg: NeMo's model config, with ``labels`` in the place of a ``tokenizer`` block, and a ``comat`` block.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError, TeacherError: as `ComatCTCModelBPE`.
    """

    def _text_tokenizer(self):
        return CharacterTokenizer.of(self.decoding.vocabulary, self._cfg.get("train_ds"))


class ComatHybridRNNTCTCModelBPE(ComatMixin, EncDecHybridRNNTCTCBPEModel):
    """NeMo's `EncDecHybridRNNTCTCBPEModel` trained with COMAT, by its CTC decoder; the RNN-T decoder is NeMo's.

    Args:
        cfg: NeMo's model config, with a ``comat`` block.
        trainer: Lightning's Trainer, or None.
    Raises:
        ConfigError, TeacherError: as `ComatCTCModelBPE`; also where ``aux_ctc.ctc_loss_weight`` is 0.
    """

    def __init__(self, cfg, trainer=None):
        super().__init__(cfg=cfg, trainer=trainer)
        if self.comat is not None and not self.ctc_loss_weight > 0:
            raise ConfigError(
                f"model.aux_ctc.ctc_loss_weight must be above 0, got {self.ctc_loss_weight}: COMAT's segments come "
                "from the CTC decoder, which would not be trained."
            )

    @staticmethod
    def _ctc_config(cfg):
        return cfg.aux_ctc

    def _ctc_decoder(self):
        return self.ctc_decoder

    def _log(self, step, numbers):
        # this model of NeMo's logs for itself, the CTC loss alone among it
        del numbers["train_ctc_loss"]
        self.log_dict(numbers)
