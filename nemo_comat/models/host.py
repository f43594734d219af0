"""What our mixins are mixed into, a model of NeMo's, as type checkers see it: NeMo has no types."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Host = Any
else:
    Host = object
