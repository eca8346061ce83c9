"""What every verb shares: mistakes of people become one short line and exit status 2."""

import functools
import os
import sys
from collections.abc import Callable


def verb(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Wrap a verb's `main`: a ValueError is printed, not traced; Ctrl-C is no crash."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except ValueError as error:
            if os.environ.get("CROMSS_TRACEBACK"):
                raise
            name = main.__module__.rpartition(".")[2] if main.__module__ != "__main__" else "cromss"
            for line in str(error).splitlines():
                print(f"{name}: {line}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the same command again goes on from the newest checkpoint", file=sys.stderr)
            return 130

    return wrapped


def command_line() -> str:
    """The command that repeats this process, as the user would type it."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else os.path.basename(sys.argv[0])
    return " ".join([program, *sys.argv[1:]])
