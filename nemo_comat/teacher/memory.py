"""A memory of texts seen lately: small corpora train for many epochs, and their texts come again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from nemo_comat.teacher.output import Embedded

MOST_BYTES = 256 * 2**20


class Memory:
    """Embedded texts, those used last first to stay, of MOST_BYTES together."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, Hashable], Embedded] = OrderedDict()
        self._bytes = 0

    def rows(
        self, texts: Sequence[str], place: Hashable, embed: Callable[[list[str]], Sequence[Embedded]]
    ) -> list[Embedded]:
        """Embedded of each text, from memory where it is there.

        Args:
            texts: list of strings. place: where they are wanted; a text is remembered for each place.
            embed: gives Embedded for each of a list of different texts.
        Examples:
            >>> from torch import ones
            >>> memory, read = Memory(), []
            >>> embed = lambda texts: read.extend(texts) or [Embedded(ones(1, 2), ones(1), False, 1) for _ in texts]
            >>> len(memory.rows(["a", "b", "a"], "cpu", embed)), len(memory.rows(["b"], "cpu", embed)), read
            (3, 1, ['a', 'b'])
        """
        new = [text for text in dict.fromkeys(texts) if (text, place) not in self._seen]
        for text, row in zip(new, embed(new)):
            self._seen[text, place] = row
            self._bytes += row.size
        for text in texts:
            self._seen.move_to_end((text, place))
        rows = [self._seen[text, place] for text in texts]
        while self._bytes > MOST_BYTES:
            _, row = self._seen.popitem(last=False)
            self._bytes -= row.size
        return rows
