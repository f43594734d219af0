"""The comat block: defaults, and one clear sentence for every mistake, before anything is loaded."""

import math
from dataclasses import asdict, fields
from inspect import Parameter, signature

import pytest
from omegaconf import OmegaConf

from nemo_comat import CachedTeacher, Teacher, config
from nemo_comat.comat import ALIGNERS, COMPRESSORS
from nemo_comat.teacher import build_teacher
from nemo_comat.transfer import LOSSES, Context, Projection, TransferLoss
from nemo_comat.views.pictures import AlignmentPictures


def test_defaults_are_filled_in():
    block = config.read_comat_config({"weight": 1, "teacher": {"layers": [-1, -2]}})
    assert block.weight == 1.0 and block.teacher.layers == [-1, -2]
    assert block.compress == dict(
        method="ctc", labels="forced", blanks="drop", pool="avg", quantity_weight=1.0, heads=4
    )
    assert block.align == dict(
        method="monotonic", within_words=False, backend="auto", temperature=0.1, epsilon=0.05, iterations=50
    )
    assert OmegaConf.is_config(block) and "surprise" not in block


@pytest.mark.parametrize(
    "block, message",
    [
        ({"wieght": 1}, r"model\.comat\.wieght is not known; .*weight, warmup_steps.* Did you mean weight\?"),
        ({"teacher": {"nam": "x"}}, r"model\.comat\.teacher\.nam is not known; .*name, layers, max_length, dtype"),
        ({"compress": {"labels": "viterbi"}}, "compress.labels must be one of greedy, forced; got 'viterbi'"),
        ({"compress": {"pool": "max"}}, "compress.pool must be one of avg, weighted, softmax; got 'max'"),
        ({"compress": {"blanks": True}}, "compress.blanks must be one of drop, keep"),
        ({"compress": {"method": "rnn"}}, "compress.method must be one of ctc, cif, attention, none; got 'rnn'"),
        ({"compress": {"methd": "cif"}}, r"compress\.methd is not known; .* Did you mean method\?"),
        ({"compress": {"quantity_weight": -1}}, "compress.quantity_weight must be 0 or more, got -1"),
        ({"compress": {"heads": 0}}, "compress.heads must be 1 or more, got 0"),
        ({"align": {"method": "dtw"}}, "align.method must be one of monotonic, one_to_one, sinkhorn; got 'dtw'"),
        ({"align": {"epsilon": 0}}, "align.epsilon must be above 0, got 0"),
        ({"align": {"temperature": 0}}, "align.temperature must be above 0, or null, got 0"),
        ({"align": {"iterations": 0}}, "align.iterations must be 1 or more, got 0"),
        ({"align": {"backend": "gpu"}}, "align.backend must be one of auto, cuda, cpu, torch; got 'gpu'"),
        ({"transfer": {"loss": "l1"}}, "loss must be one of cosine, mse, .*, classify, distribution; got 'l1'"),
        ({"transfer": {"temperature": 0}}, "transfer.temperature must be above 0, got 0"),
        ({"teacher": {"text": "raw"}}, "teacher.text must be one of tokens, manifest; got 'raw'"),
        ({"teacher": {"dtype": "int8"}}, "teacher.dtype must be one of auto, float32, bfloat16, float16; got 'int8'"),
        ({"teacher": {"units": "letter"}}, "teacher.units must be one of token, word; got 'letter'"),
        ({"teacher": {"normalize": "whiten"}}, "normalize must be one of none, center, standardize; got 'whiten'"),
        ({"teacher": {"normalize_texts": 0}}, "teacher.normalize_texts must be 1 or more, got 0"),
        ({"encoder_layer": "last"}, "encoder_layer must be a layer's number, a list of them .*; got 'last'"),
        ({"encoder_layer": []}, r"encoder_layer must be a layer's number, a list .*; got \[\]"),
        ({"encoder_layer": [1, None]}, "encoder_layer must be a layer's number"),
        ({"encoder_layer": 1, "layer_weights": [1, 2]}, r"layer_weights must be a list of 1, .* got \[1, 2\]"),
        ({"encoder_layer": [0, 1], "layer_weights": [1, -1]}, r"a number of 0 or more for each .* got \[1, -1\]"),
        (
            {"align": {"within_words": True}, "compress": {"labels": "greedy"}},
            "within_words needs segments whose words are known: .*; got ctc with greedy",
        ),
        (
            {"align": {"within_words": True}, "compress": {"method": "cif"}},
            "within_words needs .*; got cif with forced",
        ),
        (
            {"align": {"within_words": True, "method": "sinkhorn"}},
            "within_words forbids pairs .*; sinkhorn cannot. Set .*align.method=monotonic",
        ),
        (
            {"transfer": {"loss": "classify"}, "teacher": {"units": "word"}},
            "loss=classify names tokens .* set .*units=token",
        ),
        (
            {"transfer": {"loss": "distribution"}, "teacher": {"units": "word"}},
            "loss=distribution names tokens .* set .*units=token",
        ),
        ({"transfer": {"top_k": 0}}, "transfer.top_k must be 1 or more, got 0"),
        ({"transfer": {"negatives": 0}}, "transfer.negatives must be 1 or more, got 0"),
        ({"layer_weights": [1, 2]}, "layer_weights must be a list of 1, .*; got "),
        ({"projection": {"dim": 0}}, "projection.dim must be 1 or more, got 0"),
        (
            {"encoder_layer": [0, 1], "layer_weights": [math.inf, 1]},
            r"a number of 0 or more for each .* got \[inf, 1\]",
        ),
        ({"weight": -1}, "weight must be 0 or more, got -1"),
        ({"consistency_weight": -1}, "comat.consistency_weight must be 0 or more, got -1"),
        ({"weight": float("nan")}, "weight must be 0 or more, got nan"),
        ({"weight": "much"}, "model.comat.weight: .*much"),
        ({"warmup_steps": -5}, "warmup_steps must be 0 or more"),
        ({"pictures": -1}, "pictures must be 0 or more, got -1"),
        ({"weight": math.inf}, "weight must be 0 or more and finite, got inf"),
        ({"transfer": {"temperature": math.inf}}, "transfer.temperature must be above 0, got inf"),
        ({"align": {"temperature": math.inf}}, "align.temperature must be above 0, or null, got inf"),
        ({"encoder_layer": True}, "encoder_layer must be a layer's number, .*; got True"),
        (
            {"encoder_layer": [0, 1], "layer_weights": [True, 1]},
            r"layer_weights must be a list of 2, .*; got \[True, 1\]",
        ),
        ({"encoder_layer": [0, 1], "layer_weights": [0, 0]}, r"a number of 0 or more .*, and not all 0; got \[0, 0\]"),
        ({"weight": "???"}, r"model.comat.weight is \?\?\?, which stands for a value that is missing"),
        ({"teacher": {"name": "???"}}, r"model.comat.teacher.name is \?\?\?"),
        (OmegaConf.create({"teacher": {"name": "???"}}), r"model.comat.teacher.name is \?\?\?"),
        ({"context": {"layers": -1}}, "context.layers must be 0 or more, got -1"),
        ({"context": {"heads": 0}}, "context.heads must be 1 or more, got 0"),
        ({"context": {"mask": 1}}, "context.mask must be 0 or more and below 1, got 1"),
        ({"context": {"mask": -0.1}}, "context.mask must be 0 or more and below 1, got -0.1"),
        ({"projection": {"depth": 0}}, "projection.depth must be 1 or more"),
        ({"teacher": {"max_length": 0}}, "teacher.max_length must be 1 or more"),
        ({"teacher": "bert"}, "model.comat.teacher must be a block with the keys name, .* got 'bert'"),
        ("yes", "model.comat must be a block of keys, got 'yes'"),
    ],
)
def test_mistakes_get_one_sentence(block, message):
    with pytest.raises(ValueError, match=message) as error:
        config.read_comat_config(block)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "schema, built, given",
    [
        (config.TeacherConfig, [Teacher, CachedTeacher], config.teacher_arguments),
        (config.ProjectionConfig, [Projection], dict),
        (config.ContextConfig, [Context], dict),
        (config.TransferConfig, [TransferLoss], dict),
    ],
)
def test_keys_are_constructor_arguments(schema, built, given):
    found = {p.name: p.default for cls in built for p in signature(cls).parameters.values()}
    keys = given(asdict(schema()))
    assert keys.keys() <= found.keys()
    assert all(found[key] == value for key, value in keys.items() if found[key] is not Parameter.empty)


def test_what_is_read_and_what_becomes_of_it_are_no_arguments_of_the_teacher():
    block = config.read_comat_config({"teacher": {"text": "manifest"}}).teacher
    assert set(block) - set(config.teacher_arguments(block)) == {"text", "normalize", "normalize_texts"}
    assert isinstance(build_teacher(**config.teacher_arguments(block)), Teacher)


def test_the_loss_says_whether_the_teacher_gives_probabilities():
    for loss in LOSSES:
        block = config.read_comat_config({"transfer": {"loss": loss, "top_k": 5}})
        teacher = build_teacher(**config.teacher_arguments(block.teacher, block.transfer))
        assert teacher.top_k == (5 if loss == "distribution" else None)


def test_pictures_is_an_argument_with_its_default():
    assert signature(AlignmentPictures).parameters["pictures"].default == config.ComatConfig().pictures


@pytest.mark.parametrize(
    "schema, classes, given",
    [(config.CompressConfig, COMPRESSORS, {"feat_in", "blank"}), (config.AlignConfig, ALIGNERS, set())],
)
def test_keys_are_the_arguments_of_all_methods(schema, classes, given):
    defaults = {f.name: f.default for f in fields(schema)}
    assert defaults.pop("method") == next(iter(classes))
    # heeded by CompressAlignTransfer, whatever the method
    defaults.pop("within_words", None)
    # a class without a constructor of its own has nn.Module's
    found, absent = {}, {*given, "args", "kwargs"}
    for built in classes.values():
        found.update({p.name: p.default for p in signature(built).parameters.values() if p.name not in absent})
    assert found == defaults


@pytest.mark.parametrize("align", ALIGNERS)
@pytest.mark.parametrize("compress", COMPRESSORS)
def test_which_methods_go_together(compress, align):
    block = {"compress": {"method": compress}, "align": {"method": align}}
    if align == "one_to_one" and compress in ("ctc", "none"):
        message = f"one_to_one needs as many segments as tokens, so .* one of cif, attention; got '{compress}'"
        with pytest.raises(config.ConfigError, match=message) as error:
            config.read_comat_config(block)
        assert "\n" not in str(error.value)
    else:
        assert config.read_comat_config(block).align.method == align


def test_a_weight_that_is_not_given_is_that_of_the_loss():
    weights = {loss: config.read_comat_config({"transfer": {"loss": loss}}).weight for loss in LOSSES}
    assert weights == {"cosine": 10, "mse": 10, "contrastive": 1, "classify": 1, "distribution": 1}
    assert config.read_comat_config({"weight": 0, "transfer": {"loss": "classify"}}).weight == 0


def test_feedback_by_numbers_is_feedback():
    found = [config.read_comat_config({"feedback": given}).feedback for given in (1, 0, None)]
    assert found[0] is True and found[1] is found[2] is False
    with pytest.raises(config.ConfigError, match="model.comat.weight is 0"):
        config.read_comat_config({"feedback": 1, "weight": 0})


@pytest.mark.parametrize(
    "block, idle",
    [
        ({}, []),
        ({"teacher": {"mask": True, "missing": "error"}}, ["teacher.missing", "teacher.mask"]),
        ({"teacher": {"mask": True, "missing": "error"}, "transfer": {"loss": "distribution"}}, ["teacher.missing"]),
        ({"teacher": {"mask": True, "missing": "error", "cache": "a"}}, ["teacher.mask"]),
    ],
)
def test_keys_that_do_nothing_are_named(block, idle):
    sentences = config.idle_keys(config.read_comat_config(block))
    assert [sentence.split("=")[0] for sentence in sentences] == [f"model.comat.{key}" for key in idle]


def test_a_weight_of_one_layer_needs_no_list():
    assert config.encoder_layers(config.read_comat_config({"layer_weights": 0.5})) == ([None], [0.5])


def test_interpolations_may_lead_out_of_the_block():
    model = OmegaConf.create({"encoder": {"n_heads": 2}, "comat": {"compress": {"heads": "${encoder.n_heads}"}}})
    assert config.read_comat_config(model.comat).compress.heads == 2
    model.comat.compress.heads = "${encoder.gone}"
    with pytest.raises(config.ConfigError, match="model.comat: .*encoder.gone") as error:
        config.read_comat_config(model.comat)
    assert "\n" not in str(error.value)
