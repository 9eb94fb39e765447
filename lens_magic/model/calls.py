"""Calls of a model's modules without what a generation does not need.

To torch a module's children and parameters are no attributes: a function in Python looks them up, each time. And each call
asks eight times whether there is a hook. At one token a step that takes a tenth of a small model's time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STRAIGHT = "_compiled_call_impl"  # what torch calls instead of looking for hooks, where it is set (nn.Module.compile sets it)


@contextlib.contextmanager
def short_calls(root: nn.Module) -> Iterator[None]:
    """Shorten calls of a module and of all in it, for the duration of a ``with`` block.

    Children and parameters, the very same objects, stand among each module's own attributes, and modules without hooks have
    their ``forward`` called straight away. Whoever has hooks keeps them; hooks added meanwhile are not heard, so what is to
    be attached is attached before. Buffers stay where they are: rotary embeddings of some kinds make theirs anew as a text
    grows. So do the parameters of modules that accelerate fetches and lets go with each call.
    """
    added: list[tuple[dict[str, object], list[str]]] = []
    try:
        for module in root.modules():
            own = vars(module)
            more: dict[str, object] = dict(module._modules)
            if "_hf_hook" not in own:
                more |= module._parameters
            if _is_plain(module):
                more[_STRAIGHT] = module.forward
            names = [name for name in more if name not in own]
            added.append((own, names))
            own.update((name, more[name]) for name in names)
        yield
    finally:
        for own, names in added:
            for name in names:
                own.pop(name, None)


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of the module is a call of its ``forward`` and nothing else."""
    hooked = any(getattr(module, hooks) for hooks in _HOOKS) or torch_module._has_any_global_hook()
    return not hooked and type(module)._call_impl is nn.Module._call_impl
