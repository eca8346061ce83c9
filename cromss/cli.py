"""What every verb shares: mistakes of people become one short line and exit status 2, a diverged training one and 1."""

import functools
import os
import shlex
import sys
from collections.abc import Callable

from cromss.leaving import TERMINATED, Left
from cromss.masking import masked


def verb(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Wrap a verb's `main`: a ValueError is printed, not traced; Ctrl-C is no crash."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except (ValueError, FloatingPointError) as error:
            if os.environ.get("CROMSS_TRACEBACK"):
                raise
            for line in masked(str(error)).splitlines():
                print(f"{_module(main).rpartition('.')[2]}: {line}", file=sys.stderr)
            return 1 if isinstance(error, FloatingPointError) else 2
        except Left as left:
            print(f"{_module(main).rpartition('.')[2]}: {left}", file=sys.stderr)
            return TERMINATED
        except KeyboardInterrupt:
            print("interrupted; the same command (a sweep: with its --out) goes on from what is there", file=sys.stderr)
            return 130

    return wrapped


def command_line() -> str:
    """The command that repeats this process, as the user would type it, but for secrets in addresses: it is written down."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else os.path.basename(sys.argv[0])
    return f"{program} {shlex.join(map(masked, sys.argv[1:]))}".rstrip()


def _module(main: Callable[..., int]) -> str:
    """Name of the verb's module, also where it runs as `python -m`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if main.__module__ == "__main__" and spec else main.__module__
