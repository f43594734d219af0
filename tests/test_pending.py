"""A teacher's answer under way: it is the one for its texts, asked for once, and waits for what came before."""

import pytest
import torch

from nemo_comat.teacher import Pending, TeacherOutput


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
def test_on_a_gpu_it_waits_for_what_it_reads_and_is_waited_for():
    device = torch.device("cuda", torch.cuda.current_device())
    given = torch.zeros(2, 3, 4, device=device)
    torch.cuda._sleep(10**7)
    given += 1
    pending = Pending(Doubling(given), ["one", "two"], device)
    assert (pending.result().embeddings == 2).all()
