"""Models: all that touches NeMo.

`recognisers` has the model classes. `mixin` is what makes them of NeMo's: the training step, and how the teacher's
answer gets to it, by what `captured` sees and without `bad_audio`. `alignments` are to look at.

`checkpoint` is the dual ``.nemo``, `saving` the ways into files and out of them, `safe_load` how ``.ckpt`` files are
read, `resume` how a stopped run goes on, and `export` how a model leaves this package.

`rows` reads manifests, `manifest` and `lhotse_manifest` check them, and `data` has a model do so; `reference` reads
their texts and `audio` a file; `characters` is a character model's tokenizer.
"""
