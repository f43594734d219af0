"""What a model's parts give while the model works: NeMo's own steps need not be copied for it."""

from contextlib import contextmanager


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
