"""Pickles as data: what is in them is read, nothing of it is called or imported.

A pickle is a program for a stack machine. This is a machine without the instructions that do something: it knows
numbers, texts, bytes, lists, tuples, maps with texts as keys, and recognises the few names by which NumPy writes an
array, a dtype or a number. Any other name, and any other use of these, is refused. An array is as large as its bytes
in the file, so that a few bytes cannot ask for much memory.

Protocols 0 to 5, Python 2's and both spellings of NumPy's modules (numpy.core, since 2.0 numpy._core) included. Names
of Python's own are let in where NumPy's arrays cannot do without them: `_codecs.encode` with latin1 is how protocols
below 3 write bytes.
"""

import mmap
import pickletools
import re
import struct
from pathlib import Path

import numpy as np

from util.errors import UserError, quote

MOST_STEPS = 20_000_000     # instructions; NTU RGB+D 120's annotations take some 7 million
NAMES = {
    **{f'{module}.multiarray {name}': name for module in ('numpy.core', 'numpy._core') for name in ('_reconstruct',
                                                                                                   'scalar')},
    **{f'{module}.numeric _frombuffer': '_frombuffer' for module in ('numpy.core', 'numpy._core')},
    'numpy dtype': 'dtype', 'numpy ndarray': 'ndarray', '_codecs encode': 'encode',
}
DTYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248])')
VALUES = {'NONE', 'NEWTRUE', 'NEWFALSE', 'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT',
          'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE',
          'BINUNICODE8', 'SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8'}
WORDS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
MARK = object()


class Name(str):
    """A name a pickle asks for, one of those in NAMES; never what it stands for."""


class PickledArray:
    """An array as a pickle holds it; `values` is None until the pickle has given its content."""

    values: np.ndarray | None = None


class _Dtype:
    def __init__(self, code: str):
        self.code = code


class _Refused(ValueError):
    pass


def read_pickle(path: str | Path):
    """What a pickle holds: plain values, and a PickledArray for each of NumPy's arrays.

    Raises UserError for a file that cannot be read, is no whole pickle, or holds anything else.
    """
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Machine().run(view)
    except _Refused as error:
        raise UserError(f'{path}: refused, {error}; only plain values and NumPy arrays of numbers are read') from error
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error}); correct the path or its permissions'
                        ) from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, MemoryError,
            RecursionError) as error:        # all that a file in pieces can end in
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise UserError(f'{path}: not a whole pickle ({why:.80}); get the file again') from error


class _Machine:
    """Runs the instructions of one pickle."""

    def __init__(self):
        self.stack, self.memo = [], {}

    def run(self, file):
        for steps, (code, arg, _) in enumerate(pickletools.genops(file)):
            if steps == MOST_STEPS:
                raise _Refused(f'it takes more than {MOST_STEPS:,} steps to read')
            if code.name == 'STOP':
                value = self.pop()
                if self.stack:
                    raise ValueError('values are left over')
                return value
            if code.name in VALUES:
                self.stack.append(WORDS.get(code.name, arg))
            elif (step := getattr(self, f'do_{code.name}', None)) is None:
                raise _Refused(f'it has the instruction {code.name}')
            else:
                step(arg)
        raise ValueError('it has no end')

    def pop(self):
        value = self.stack.pop()
        if value is MARK:
            raise ValueError('a mark in the place of a value')
        return value

    def pop_to_mark(self) -> list:
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise ValueError('a mark is missing')
        values = self.stack[at + 1:]
        del self.stack[at:]
        return values

    def top(self, kind: type):
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f'a {type(self.stack[-1]).__name__} in the place of a {kind.__name__}')
        return self.stack[-1]

    # ---- instructions: names are pickletools' ------------------------------------------------------------------------

    def do_PROTO(self, arg): pass

    def do_FRAME(self, arg): pass

    def do_MARK(self, arg): self.stack.append(MARK)

    def do_POP(self, arg): self.stack.pop()

    def do_POP_MARK(self, arg): self.pop_to_mark()

    def do_EMPTY_LIST(self, arg): self.stack.append([])

    def do_EMPTY_DICT(self, arg): self.stack.append({})

    def do_EMPTY_TUPLE(self, arg): self.stack.append(())

    def do_LIST(self, arg): self.stack.append(self.pop_to_mark())

    def do_TUPLE(self, arg): self.stack.append(tuple(self.pop_to_mark()))

    def do_DICT(self, arg):
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def do_TUPLE1(self, arg): self.stack.append((self.pop(),))

    def do_TUPLE2(self, arg): self.stack.append((self.pop(), self.pop())[::-1])

    def do_TUPLE3(self, arg): self.stack.append((self.pop(), self.pop(), self.pop())[::-1])

    def do_APPEND(self, arg):
        value = self.pop()
        self.top(list).append(value)

    def do_APPENDS(self, arg):
        values = self.pop_to_mark()
        self.top(list).extend(values)

    def do_SETITEM(self, arg): self.set_items([self.pop(), self.pop()][::-1])

    def do_SETITEMS(self, arg): self.set_items(self.pop_to_mark())

    def set_items(self, items: list):
        if not all(isinstance(key, str) and not isinstance(key, Name) for key in items[::2]):
            raise _Refused('it has a map whose keys are not all texts')
        self.top(dict).update(zip(items[::2], items[1::2], strict=True))

    def do_PUT(self, arg):
        if self.stack[-1] is MARK:
            raise ValueError('a mark in the place of a value')
        self.memo[arg] = self.stack[-1]

    do_BINPUT = do_LONG_BINPUT = do_PUT

    def do_MEMOIZE(self, arg): self.do_PUT(len(self.memo))

    def do_GET(self, arg): self.stack.append(self.memo[arg])

    do_BINGET = do_LONG_BINGET = do_GET

    def do_GLOBAL(self, arg):
        if arg not in NAMES:
            raise _Refused(f'it asks for {quote(arg.replace(" ", "."))}')
        self.stack.append(Name(NAMES[arg]))

    def do_STACK_GLOBAL(self, arg):
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError('a name that is no text')
        self.do_GLOBAL(f'{module} {name}')

    def do_REDUCE(self, arg):
        args, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise _Refused('it calls what is no name')
        made = {'_reconstruct': _reconstruct, 'scalar': _scalar, 'dtype': _dtype, 'encode': _encode,
                '_frombuffer': _frombuffer}.get(str(name), _nothing)(args)
        self.stack.append(made)

    def do_BUILD(self, arg):
        state, what = self.pop(), self.stack[-1]
        if isinstance(what, _Dtype):
            _set_order(what, state)
        elif isinstance(what, PickledArray):
            _set_values(what, state)
        else:
            raise _Refused(f'it sets the state of a {type(what).__name__}')


# ---- what NumPy's names stand for: each takes only what NumPy itself writes ------------------------------------------


def _nothing(args: tuple):
    raise _Refused('it calls numpy.ndarray')


def _reconstruct(args: tuple) -> PickledArray:
    """NumPy makes an empty array first, of this very call, and sets its content afterwards."""
    if not (len(args) == 3 and args[0] == 'ndarray' and isinstance(args[0], Name) and args[1] == (0,)
            and args[2] in (b'b', 'b')):
        raise _Refused('it makes an array in an unusual way')
    return PickledArray()


def _dtype(args: tuple) -> _Dtype:
    code = args[0] if args else None
    if isinstance(code, bytes):
        code = code.decode('latin-1')
    if not isinstance(code, str) or not DTYPE.fullmatch(code):
        raise _Refused(f'it has an array of {quote(code) if isinstance(code, str) else "no numbers"}')
    return _Dtype(code)


def _set_order(dtype: _Dtype, state) -> None:
    """The byte order; fields, shapes and metadata a dtype of plain numbers has none of."""
    if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise _Refused('it has a dtype that is not one of plain numbers')
    order = state[1].decode('latin-1') if isinstance(state[1], bytes) else state[1]
    if order not in ('<', '>', '|', '='):
        raise _Refused('it has a dtype of no known byte order')
    dtype.code = order + dtype.code.lstrip('<>|=')


def _encode(args: tuple) -> bytes:
    if not (len(args) == 2 and isinstance(args[0], str) and args[1] == 'latin1'):
        raise _Refused('it has bytes in another encoding than latin1')
    return args[0].encode('latin-1')


def _array(raw, dtype, shape, fortran) -> np.ndarray:
    """The array of these bytes, which must be as many as its shape needs."""
    if isinstance(raw, str):        # of Python 2
        raw = raw.encode('latin-1')
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) \
            or not all(isinstance(size, int) and size >= 0 for size in shape) or len(shape) > 32:
        raise _Refused('it has an array that is not one of plain numbers')
    kind = np.dtype(dtype.code)
    expected = kind.itemsize
    for size in shape:
        expected *= size
    if expected != len(raw):
        raise _Refused(f'it has an array of shape {quote(shape)} in {len(raw):,} bytes')
    values = np.frombuffer(bytes(raw) if isinstance(raw, bytearray) else raw, dtype=kind)
    return values.reshape(shape, order='F' if fortran else 'C')


def _set_values(array: PickledArray, state) -> None:
    if not isinstance(state, tuple) or len(state) != 5:
        raise _Refused('it has an array of unknown make')
    _, shape, dtype, fortran, raw = state
    array.values = _array(raw, dtype, shape, fortran is True or fortran == 1)


def _frombuffer(args: tuple) -> PickledArray:
    """How protocol 5 writes an array whose bytes are of one piece."""
    if len(args) != 4 or args[3] not in ('C', 'F', 'A'):
        raise _Refused('it makes an array in an unusual way')
    raw, dtype, shape, order = args
    array = PickledArray()
    array.values = _array(raw, dtype, shape, order == 'F')
    return array


def _scalar(args: tuple):
    if len(args) != 2:
        raise _Refused('it makes a number in an unusual way')
    return _array(args[1], args[0], (), False).item()
