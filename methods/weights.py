"""Weights from files that other programs wrote: read without executing them, renamed, and checked key by key."""

from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# what training scripts wrap the state dict in
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# scores that they keep beside it, as NumPy pickles them; numbers, not code
_NUMPY_NUMBERS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")},
]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names, on the CPU.

    Args:
        path: a file that ``torch.save`` wrote: a state dict, or one under ``state_dict``, ``model_state_dict`` or
            ``model``. Nothing in it is executed.

    Raises:
        ValueError: there is no such file, it holds more than tensors and numbers, or no state dict is in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights {path}: no such file; give the path of a PyTorch state dict")
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"weights {path}: not a file of tensors that can be read without executing it ({reason}); "
            "download it again, or save its state_dict() alone"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not _is_state_dict(content):
        found = (
            f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
        )
        raise ValueError(f"weights {path}: expected a state dict of named tensors, found {found}")
    # written under nn.DataParallel
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return content


def load_weights(
    module: nn.Module,
    path: str | Path,
    prefixes: Mapping[str, str],
    *,
    ignored: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Load a file's tensors into a module under other names; all of them or none.

    Args:
        module: what to load into.
        path: as for ``read_state_dict``.
        prefixes: name in the file -> name in the module, each of a tensor or of all below it; of several the longest
            counts. ``{"": ""}`` takes names as they are.
        ignored: prefixes of names in the file that the module has no use for.
        optional: prefixes of names in the module that the file may lack.

    Raises:
        ValueError: a name or a shape does not fit; it says which and what would.
    """
    source = read_state_dict(path)
    target = module.state_dict()
    renamed, unknown = {}, []
    for name, tensor in source.items():
        if _below_any(name, ignored):
            continue
        new_name = _renamed(name, prefixes)
        if new_name is None or new_name not in target:
            unknown.append(name)
        else:
            renamed[new_name] = _fitted(tensor, target[new_name], f"weights {path}: {name}", new_name)
    missing = [
        name
        for name in target.keys() - renamed.keys()
        # files from before PyTorch 0.4.1 do not count batches
        if not name.endswith("num_batches_tracked") and not _below_any(name, optional)
    ]
    if unknown or missing:
        raise ValueError(
            f"weights {path}: of another network than the model: in the file alone {_listed(unknown)}; "
            f"in the model alone {_listed(missing)}; "
            "give the file of this method and variant, or set the model's arguments as the file's network has them"
        )
    module.load_state_dict(renamed, strict=False)


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _below(name: str, prefix: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(f"{prefix}.")


def _below_any(name: str, prefixes: Collection[str]) -> bool:
    return any(_below(name, prefix) for prefix in prefixes)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str | None:
    fitting = [prefix for prefix in prefixes if _below(name, prefix)]
    if not fitting:
        return None
    longest = max(fitting, key=len)
    return prefixes[longest] + name.removeprefix(longest)


def _fitted(tensor: Tensor, like: Tensor, subject: str, new_name: str) -> Tensor:
    # a convolution of kernel 1 is a linear layer with ones behind its shape
    shape = tuple(tensor.shape)
    while len(shape) > like.dim() and shape[-1] == 1:
        shape = shape[:-1]
    if shape != tuple(like.shape):
        raise ValueError(
            f"{subject} has shape {tuple(tensor.shape)}, but the model's {new_name} has {tuple(like.shape)}; "
            "set the model's sizes as the file's network has them, or give a file of this size"
        )
    return tensor.reshape(shape)


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{shown}{more}" if names else "nothing"
