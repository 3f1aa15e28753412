"""Read the pickle of a PyTorch checkpoint as data: nothing in it is ever called.

A pickle is a program for a stack machine (opcodes: `pickletools` of the standard library). Instead of handing
it to `pickle`, this module carries out the few opcodes that describe a dictionary of tensors, and takes the
calls and classes that such a dictionary consists of for what they stand for. All else is refused by name.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from builder.errors import FormatError, UnsupportedError

MAX_OPERATIONS = 1_000_000  # a state dictionary takes about 40 for a tensor
SAFE = "Save the weights alone, best as safetensors: model.save_pretrained(…)."

# Types of storages: PyTorch's class to dtype. The others hold no weights, but may lie beside them.
STORAGES: Mapping[str, str] = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in a file of its own: its dtype, its key, how many."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: a view of a storage. Nothing of it is checked yet."""

    storage: Storage
    offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True, slots=True)
class _Global:
    """A class or function that the pickle mentions."""

    name: str


def read_state_dict(data: bytes, where: str) -> dict[str, View]:
    """Return the tensors that a pickle describes, by name.

    Args:
        data: the pickle, `data.pkl` of a checkpoint.
        where: the file, for messages.

    Raises:
        FormatError: no pickle, or damaged.
        UnsupportedError: it describes anything but a dictionary of tensors.
    """
    machine = _Machine(where)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPERATIONS:
                raise FormatError(f"{where} has more than {MAX_OPERATIONS} operations", hint=SAFE)
            machine.carry_out(opcode.name, argument)
        (found,) = machine.stack
    except (ValueError, IndexError, KeyError) as error:  # genops; a stack or memo that lacks what is wanted
        raise FormatError(f"{where} is not a valid pickle", hint=SAFE) from error
    if not isinstance(found, dict):
        raise UnsupportedError(f"{where} is no dictionary of tensors", hint=SAFE)
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise UnsupportedError(f"{where} has {str(name)[:80]!r}, which is no named tensor", hint=SAFE)
    return found


class _Machine:
    """Stack, marks and memo of a pickle."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def carry_out(self, name: str, argument: Any) -> None:
        """Do what an opcode says."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name in FRESH:
            self.stack.append(FRESH[name]())
        elif name in FIXED_TUPLES:
            self._tuple(FIXED_TUPLES[name])
        elif (operation := OPERATIONS.get(name)) is not None:
            operation(self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnsupportedError(
                f"{self.where} uses the operation {name}, which weights do not need", hint=SAFE
            )

    def _tuple(self, size: int) -> None:
        if size > len(self.stack):
            raise IndexError
        items = tuple(self.stack[-size:])
        del self.stack[-size:]
        self.stack.append(items)

    def mark(self, argument: Any) -> None:
        self._marks.append(len(self.stack))

    def marked(self) -> list[Any]:
        """Take everything above the last mark."""
        at = self._marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def marked_tuple(self, argument: Any) -> None:
        self.stack.append(tuple(self.marked()))

    def put(self, argument: Any) -> None:
        self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]

    def get(self, argument: Any) -> None:
        self.stack.append(self._memo[argument])

    def set_item(self, argument: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def set_items(self, argument: Any) -> None:
        items = self.marked()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def _set(self, key: Any, value: Any) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or not isinstance(key, str | int):
            raise UnsupportedError(f"{self.where} describes something else than named tensors", hint=SAFE)
        if key in target:
            raise FormatError(f"{self.where} has {str(key)[:80]!r} twice", hint=SAFE)
        target[key] = value

    def mention(self, argument: Any) -> None:
        """A class or function by "module name"."""
        self._mention(argument)

    def mention_stacked(self, argument: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._mention(f"{module} {name}")

    def _mention(self, text: str) -> None:
        name = text.replace(" ", ".")
        if name not in KNOWN and name.removeprefix("torch.") not in STORAGES:
            raise UnsupportedError(
                f"{self.where} asks for {name[:80]!r}, which is not run or loaded", hint=SAFE
            )
        self.stack.append(_Global(name))

    def call(self, argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        match function, arguments:
            case _Global("collections.OrderedDict"), ():
                self.stack.append({})
            case (
                _Global("torch._utils._rebuild_tensor_v2"),
                (Storage() as storage, offset, shape, strides, *_),
            ):
                self.stack.append(View(storage, offset, shape, strides))
            case _Global("torch._utils._rebuild_parameter"), (View() as view, *_):
                self.stack.append(view)
            case _:
                raise UnsupportedError(f"{self.where} describes something else than tensors", hint=SAFE)

    def persistent(self, argument: Any) -> None:
        match self.stack.pop():
            case ("storage", _Global(name), str(key), _, int(elements)) if 0 <= elements < 2**63:
                dtype = STORAGES.get(name.removeprefix("torch."))
                if dtype is not None:
                    self.stack.append(Storage(dtype, key, elements))
                    return
        raise UnsupportedError(f"{self.where} refers to something else than a storage", hint=SAFE)

    def build(self, argument: Any) -> None:
        """Attributes of a dictionary, such as `_metadata`, mean nothing here."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise UnsupportedError(f"{self.where} sets attributes of an object", hint=SAFE)


KNOWN = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
LITERALS = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
}  # fmt: skip
FRESH: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
OPERATIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.marked_tuple,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.mention,
    "STACK_GLOBAL": _Machine.mention_stacked,
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.persistent,
    "BUILD": _Machine.build,
}
