"""Pickles read as data: tuples, bytes, text and integers, and nothing else.

A pickle is a program for a small machine, some of whose instructions import and call anything. This machine has only the
instructions that make plain values; it never imports, calls or looks up a name, so that there is nothing to escape to.
"""

import re
import struct
from collections.abc import Callable

_MAX_STEPS = 1000
_MARK = object()

# How Python 3.8 and later write a numpy.int64: a call of numpy's `scalar` with the type's description and 8 bytes. Ids
# taken from a pandas column are stored so. The text is recognised as a whole and its number taken; no name in it is used.
_INT64 = re.compile(
    rb"(?:\x8c\x15numpy\.core|\x8c\x16numpy\._core)\.multiarray\x94\x8c\x06scalar\x94\x93\x94"
    rb"\x8c\x05numpy\x94\x8c\x05dtype\x94\x93\x94\x8c\x02i8\x94\x89\x88\x87\x94R\x94"
    rb"\(K\x03\x8c\x01<\x94NNNJ\xff{4}J\xff{4}K\x00t\x94bC\x08(.{8})\x94\x86\x94R",
    re.DOTALL,
)


class UnsafePickle(ValueError):
    """A pickle that holds more than plain values, or is damaged."""


def read_plain_pickle(data: bytes | memoryview) -> object:
    """The value of a pickle of protocol 3 to 5 (Python 3) made of tuples, bytes, text and integers. Bytes come as views
    of `data`, which are not copied.

    Raises UnsafePickle (a ValueError) for any other instruction, for lengths beyond the data, and for programs of more
    than a thousand steps.
    """
    machine = _Machine(memoryview(data))
    for _ in range(_MAX_STEPS):
        if machine.step():
            return machine.result()
    raise UnsafePickle(f"a pickle of more than {_MAX_STEPS} instructions, where a handful make a plain value")


class _Machine:
    def __init__(self, data: memoryview):
        self.data, self.at = data, 0
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}

    def step(self) -> bool:
        """Run one instruction; True at the end."""
        # within the matching window there are some 150 bytes
        if found := _INT64.match(self.data[self.at : self.at + 200]):
            self.at += found.end()
            self.stack.append(int.from_bytes(found[1], "little", signed=True))
            return False
        code = self.number("<B")
        if code == 0x2E:  # STOP
            return True
        if code not in _STEPS:
            raise UnsafePickle(
                f"a pickle with the instruction {bytes([code])!r} at byte {self.at - 1}: only tuples, bytes, text and "
                "integers are read, for a pickle of anything else can run any program"
            )
        _STEPS[code](self)
        return False

    def result(self) -> object:
        """What is left when the program has ended."""
        if self.at != len(self.data):
            raise UnsafePickle(f"a pickle with {len(self.data) - self.at} bytes after its end")
        value = self.pop()
        if self.stack or value is _MARK:
            raise UnsafePickle("a damaged pickle: it ends amid a value")
        return value

    def take(self, length: int) -> memoryview:
        """The next bytes."""
        if not 0 <= length <= len(self.data) - self.at:
            raise UnsafePickle(f"a truncated pickle: {length} bytes declared, {len(self.data) - self.at} there")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, form: str) -> int:
        """The next number, in the form of the module struct."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def pop(self) -> object:
        """The topmost value."""
        if not self.stack:
            raise UnsafePickle("a damaged pickle: a value is missing")
        return self.stack.pop()

    def tuple(self, length: int | None) -> None:
        """The topmost values, those since the mark where no number is given, as one."""
        values: list[object] = []
        while length is None or len(values) < length:
            value = self.pop()
            if value is _MARK:
                if length is None:
                    break
                raise UnsafePickle("a damaged pickle: a value is missing")
            values.append(value)
        self.stack.append(tuple(reversed(values)))

    def remember(self, index: int) -> None:
        """Note the topmost value under a number; a program cannot fill more notes than it has steps."""
        value = self.pop()
        self.memo[index] = value
        self.stack.append(value)

    def recall(self, index: int) -> None:
        """A noted value again."""
        if index not in self.memo:
            raise UnsafePickle("a damaged pickle: it recalls what it never noted")
        self.stack.append(self.memo[index])

    def text(self, length: int) -> None:
        """Unicode of that many bytes."""
        try:
            self.stack.append(str(self.take(length), "utf-8"))
        except UnicodeDecodeError:
            raise UnsafePickle("a damaged pickle: text that is no UTF-8") from None

    def protocol(self) -> None:
        """3 to 5: earlier ones write bytes as text or as a call."""
        if not 3 <= self.number("<B") <= 5:
            raise UnsafePickle("a pickle of an unknown protocol")

    def frame(self) -> None:
        """Frames are for reading ahead; only their length is checked."""
        length = self.number("<Q")
        if length > len(self.data) - self.at:
            raise UnsafePickle(f"a truncated pickle: a frame of {length} bytes, {len(self.data) - self.at} there")


def _push(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.number(form))


def _bytes(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(form)))


def _text(form: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.text(machine.number(form))


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): lambda machine: machine.stack.append(_MARK),
    ord(")"): lambda machine: machine.stack.append(()),
    ord("t"): lambda machine: machine.tuple(None),
    0x85: lambda machine: machine.tuple(1),
    0x86: lambda machine: machine.tuple(2),
    0x87: lambda machine: machine.tuple(3),
    ord("J"): _push("<i"),
    ord("K"): _push("<B"),
    ord("M"): _push("<H"),
    0x8A: lambda machine: machine.stack.append(
        int.from_bytes(machine.take(machine.number("<B")), "little", signed=True)
    ),
    ord("C"): _bytes("<B"),
    ord("B"): _bytes("<I"),
    0x8E: _bytes("<Q"),
    0x8C: _text("<B"),
    ord("X"): _text("<I"),
    0x8D: _text("<Q"),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("q"): lambda machine: machine.remember(machine.number("<B")),
    ord("r"): lambda machine: machine.remember(machine.number("<I")),
    ord("h"): lambda machine: machine.recall(machine.number("<B")),
    ord("j"): lambda machine: machine.recall(machine.number("<I")),
}
