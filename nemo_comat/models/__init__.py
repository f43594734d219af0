"""Models: all that touches NeMo.

`mixin` has the training step and the model classes; `checkpoint` the dual ``.nemo``, `safe_load` the reading of
``.ckpt`` files and `resume` going on from them; `manifest` checks data, `reference` reads its texts, and `characters`
is the tokenizer of character models; `export` leaves this package.
"""
