"""Normalisation of the teacher's vectors: their common mean, and their spread, are taken out of them."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Normalize = Literal["none", "center", "standardize"]
NORMALIZE: tuple[Normalize, ...] = get_args(Normalize)


class VectorStatistics(NamedTuple):
    """Of many vectors: mean [D] and standard deviation [D], float32, and how many they are, an int."""

    mean: Tensor
    deviation: Tensor
    number: int


def vector_statistics(rows: Iterable[Tensor]) -> VectorStatistics:
    """Mean and standard deviation of each feature over all vectors, summed in float64.

    Args:
        rows: iterable of [n, D]; those that are not finite count as absent.
    Returns:
        VectorStatistics, on the CPU; the deviation is the population's, 0 for a single vector.
    Raises:
        ValueError: there is no finite vector.
    Source: Chan, Golub and LeVeque 1983, for the sum of squares in parts.
    Examples:
        >>> vector_statistics([torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 5.0]])])
        VectorStatistics(mean=tensor([2., 5.]), deviation=tensor([1., 0.]), number=2)
    """
    count, mean, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for row in rows:
        row = row.detach().to("cpu", torch.float64)
        row = row[row.isfinite().all(1)]
        if not len(row):
            continue
        new = row.mean(0)
        total = count + len(row)
        squares = squares + (row - new).square().sum(0) + (new - mean).square() * (count * len(row) / total)
        mean = mean + (new - mean) * (len(row) / total)
        count = total
    if not count:
        raise ValueError("there is no finite vector to take a mean of; give texts that the teacher reads")
    return VectorStatistics(mean.float(), (squares / count).sqrt().float(), count)


def normalize_vectors(vectors: Tensor, mean: Tensor, deviation: Tensor | None = None) -> Tensor:
    """(vectors - mean) / deviation; a feature that never changed, whose deviation is 0, is only shifted.

    Args:
        vectors: [..., D]. mean, deviation: [D]; without a deviation the vectors are only shifted.
    Returns:
        [..., D].
    Examples:
        >>> normalize_vectors(torch.tensor([[3.0, 5.0]]), torch.tensor([2.0, 5.0]), torch.tensor([0.5, 0.0]))
        tensor([[2., 0.]])
    """
    shifted = vectors - mean
    return shifted if deviation is None else shifted / torch.where(deviation > 0, deviation, 1)


class TeacherNormalization(nn.Module):
    """`normalize_vectors` with statistics that are taken once, before training, and kept with the model.

    Until then vectors stay as they are.

    Args:
        dim: width of the vectors.
        normalize: "center" or "standardize".
    Raises:
        ValueError: normalize is neither.
    Examples:
        >>> norm = TeacherNormalization(2)
        >>> norm.keep(vector_statistics([torch.tensor([[1.0, 5.0], [3.0, 5.0]])]))
        >>> norm(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0.]])
    """

    mean: Tensor
    deviation: Tensor
    number: Tensor
    source: Tensor

    def __init__(self, dim: int, normalize: Normalize = "center") -> None:
        super().__init__()
        if normalize not in NORMALIZE[1:]:
            raise ValueError(f"normalize must be one of {', '.join(NORMALIZE[1:])}; got {normalize!r}")
        self.method = normalize
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        self.register_buffer("number", torch.zeros((), dtype=torch.int64))
        self.register_buffer("source", torch.zeros((), dtype=torch.int64))

    def lacks(self, source: int) -> bool:
        """True where there are no statistics yet, or those of other vectors; `source` as in `keep`, 0 = not known."""
        return not self.number or (int(self.source) not in (0, source))

    def keep(self, statistics: VectorStatistics, source: int = 0) -> None:
        """Takes statistics over for good.

        Args:
            statistics: of `vector_statistics`. source: a number that tells the vectors' teacher from others.
        Raises:
            ValueError: they are of vectors of another width.
        """
        if statistics.mean.shape != self.mean.shape:
            raise ValueError(
                f"the statistics are of vectors of width {len(statistics.mean)}, the model's teacher has "
                f"{len(self.mean)}; take them of that teacher's vectors, by vector_statistics"
            )
        for name, value in statistics._asdict().items():
            getattr(self, name).copy_(torch.as_tensor(value))
        self.source.fill_(source)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # weights of before do not say it
        state_dict.setdefault(f"{prefix}source", torch.zeros_like(self.source))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, vectors: Tensor) -> Tensor:
        """[..., D] to [..., D] float32."""
        return normalize_vectors(vectors.float(), self.mean, self.deviation if self.method == "standardize" else None)

    def extra_repr(self) -> str:
        return f"{len(self.mean)}, normalize={self.method!r}"
