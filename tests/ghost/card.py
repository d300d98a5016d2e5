"""A simulated CUDA card (and, where torch is built for CUDA, a real one under the same name): tensors say cuda:0, hold real numbers on the CPU, and refuse to mix with those of the CPU.

`with simulated_card() as log:` patches torch.cuda for one block. `log` counts every call that would make the host wait for a
real card (a copy that is not asynchronous, `.item()`, `equal`, `nonzero`, ...) by the line of `mil` that made it, and the
bytes that live on the card and their peak. Kernels, compiled code and time are not simulated.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest import mock

import torch
from card_log import Log, real_card
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WAITS = {
    "aten._local_scalar_dense.default": "item",
    "aten.is_nonzero.default": "item",
    "aten.equal.default": "equal",
    "aten.nonzero.default": "nonzero",
    "aten.masked_select.default": "masked_select",
    "aten._unique2.default": "unique",
    "aten.unique_dim.default": "unique",
    "aten._linalg_check_errors.default": "linalg check",
}
COPIES = ("aten.copy_.default", "aten._to_copy.default")
INDEXING = ("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default")


_log = Log(2**62)


class OnCard(torch.Tensor):
    """A tensor on the simulated card; `values` are its numbers."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnCard":
        """Wrap `values`."""
        _log.hold(values)
        outside: Any = torch.Tensor
        wrapper = outside._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CUDA,
        )
        wrapper.values = values
        return wrapper

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnCard({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation on a tensor of the card."""
        return operate(func, args, kwargs or {})


def is_card(device: Any) -> bool:
    """Whether a `device` argument means the card."""
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation with the card's rules: devices must not mix, waits are counted, results lie on the card."""
    name = _name(func)
    _log.calls[name] += 1
    tensors = tensors_of(args) + tensors_of(kwargs.values())
    here = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
    if name in WAITS and here:
        _log.wait(WAITS[name])
    kwargs = dict(kwargs)
    kwargs.pop("pin_memory", None)
    on_card = bool(here)
    if name in INDEXING:
        _check_indices(args)
    elif name == "aten.copy_.default":
        if isinstance(args[0], OnCard) != isinstance(args[1], OnCard) and not (len(args) > 2 and args[2]):
            _log.wait("copy to the host" if isinstance(args[1], OnCard) else "copy to the card")
    elif name == "aten._to_copy.default":
        wanted = kwargs.get("device")
        on_card = bool(here) if wanted is None else is_card(wanted)
        if on_card != bool(here) and not kwargs.pop("non_blocking", False):
            _log.wait("copy to the card" if on_card else "copy to the host")
    elif here and any(not isinstance(tensor, OnCard) and tensor.dim() for tensor in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({name})")
    if kwargs.get("device") is not None:
        on_card = is_card(kwargs["device"])
        kwargs["device"] = CPU
    kwargs.pop("non_blocking", None)
    plain_args = mapped(_values, args)
    plain_kwargs = {key: mapped(_values, value) for key, value in kwargs.items()}
    with _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext():
        result = func(*plain_args, **plain_kwargs)
    if name == "aten.copy_.default":
        return args[0]
    known = {id(_values(tensor)): tensor for tensor in tensors}
    return mapped(lambda leaf: _result(leaf, known, on_card), result)


_name = cache(str)


def tensors_of(values: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of an operation, in lists of them, too. PyTorch's trees take most of a test's time."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_of(value)
    return found


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """`change` of each leaf of an argument or result of an operation: lists and tuples of leaves."""
    if isinstance(value, list | tuple):
        return type(value)([mapped(change, leaf) for leaf in value])
    return change(value)


def _check_indices(args: Any) -> None:
    """A CPU index of a tensor on the card is copied there, and a mask is counted: both block."""
    for index in filter(None.__ne__, args[1]):
        if isinstance(index, OnCard) and not isinstance(args[0], OnCard):
            raise RuntimeError("indices should be on the device of the indexed tensor (cpu)")
        if isinstance(args[0], OnCard) and not isinstance(index, OnCard) and index.dim():
            _log.wait("copy of an index to the card")
        if isinstance(args[0], OnCard) and index.dtype == torch.bool:
            _log.wait("nonzero of a mask")


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, OnCard) else leaf


def _result(leaf: Any, known: dict[int, torch.Tensor], on_card: bool) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return known.get(id(leaf)) if id(leaf) in known else OnCard(leaf) if on_card else leaf


class Factories(TorchDispatchMode):
    """Tensors made with `device="cuda"`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As `operate`, for operations that name the card or hold a tensor of it."""
        kwargs = kwargs or {}
        named = is_card(kwargs.get("device"))
        if named or any(isinstance(leaf, OnCard) for leaf in [*tensors_of(args), *tensors_of(kwargs.values())]):
            return operate(func, args, kwargs)
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; the default costs two more calls per operation."""
        return False


class Bindings(TorchFunctionMode):
    """Calls whose Python bindings would start CUDA before any operation is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take them to the CPU, and their result to the card."""
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            return args[0].clone()
        if name == "tolist" and isinstance(args[0], OnCard):
            _log.wait("copy to the host")
            return args[0].values.tolist()
        if name in ("cuda", "cpu"):
            return move(args[0], CUDA if name == "cuda" else CPU, kwargs.get("non_blocking", False))
        if name == "to" and isinstance(args[0], torch.Tensor):
            return self._to(func, args, kwargs)
        if is_card(kwargs.get("device")):
            if name in ("tensor", "as_tensor"):
                _log.wait("copy to the card")
            if args and isinstance(args[0], OnCard):
                kwargs.pop("device")
                return func(*args, **kwargs)
            return OnCard(func(*args, **{**kwargs, "device": CPU}))
        return func(*args, **kwargs)

    def _to(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """`tensor.to(...)` in all its forms."""
        tensor, rest = args[0], list(args[1:])
        device = kwargs.pop("device", None)
        asynchronous = kwargs.pop("non_blocking", False)
        if rest and isinstance(rest[0], str | torch.device):
            device = rest.pop(0)
        elif rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
            device, kwargs["dtype"] = other.device, other.dtype
        while rest and (rest[-1] is None or isinstance(rest[-1], bool)):
            asynchronous = rest.pop() or asynchronous
        moved = tensor if device is None else move(tensor, torch.device(device), asynchronous)
        return func(moved, *rest, **kwargs) if rest or kwargs else moved


def move(tensor: torch.Tensor, device: torch.device, asynchronous: bool) -> torch.Tensor:
    """A copy on the other device; the tensor itself where it is there already. Gradients flow through."""
    if is_card(device) == isinstance(tensor, OnCard):
        return tensor
    return torch.ops.aten._to_copy.default(tensor, device=device, non_blocking=asynchronous)


class Stream:
    """A stream on which everything is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, _: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, _: Any) -> None:
        """Nothing to wait for."""


class Event:
    """An event that has happened. Waiting for it is counted."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None:
        """Nothing to record."""

    def query(self) -> bool:
        """Whether it has happened."""
        return True

    def synchronize(self) -> None:
        """Wait."""
        _log.wait("event")

    def elapsed_time(self, _: "Event") -> float:
        """Milliseconds."""
        return 1.0


class Runtime:
    """The CUDA runtime: registering host memory gives `code`."""

    def __init__(self, code: int) -> None:
        self.code = code

    def cudaHostRegister(self, *_: Any) -> int:
        """The given code."""
        return self.code

    def cudaHostUnregister(self, *_: Any) -> int:
        """Success."""
        return 0


class Properties:
    """What torch says of an H100."""

    uuid, name, major, minor, total_memory = "GPU-simulated", "simulated H100", 9, 0, 80 * 2**30


@contextmanager
def on_stream(_: Any) -> Iterator[None]:
    """As `torch.cuda.stream`."""
    yield


@contextmanager
def simulated_card(total_bytes: int = 80 * 2**30, register_code: int = 0) -> Iterator[Log]:
    """A card with `total_bytes` of memory for the block; `register_code`: what registering host memory returns (0: success)."""
    global _log
    if torch.version.cuda is not None:
        with real_card(total_bytes) as real:
            yield real
        return
    _log = log = Log(total_bytes)
    patches: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "mem_get_info": lambda _=None: (log.total_bytes - log.live_bytes, log.total_bytes),
        "get_device_properties": lambda _=0: Properties,
        "get_device_name": lambda _=0: Properties.name,
        "get_device_capability": lambda _=None: (9, 0),
        "is_bf16_supported": lambda *_: True,
        "synchronize": lambda _=None: log.wait("synchronize"),
        "empty_cache": lambda: None,
        "Stream": Stream,
        "Event": Event,
        "stream": on_stream,
        "current_stream": lambda _=None: Stream(),
        "cudart": lambda: Runtime(register_code),
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", lambda *_: None))
        stack.enter_context(
            mock.patch.object(torch, "inference_mode", torch.no_grad)
        )  # no wrapper under inference mode
        swap = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        stack.enter_context(Factories())
        stack.enter_context(Bindings())
        yield log
