"""Secrets do not travel: what is written down, printed or sent has them taken out first."""

import re

_STARS = "***"
# user:password@ up to the last @ of the word (secrets hold slashes), and a token alone before an @
_USER = re.compile(r"""(?<=://)(?:[^\s'"@/:]*:[^\s'"]*|[^\s'"@/]+)@""")
_QUERY = re.compile(
    r"""([?&;][\w.-]*(?:passw(?:or)?d|pwd|secret|token|api_?key|access_?key|credential|signature|sig)[\w.-]*=)[^&\s'";]+""",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """`text` with user names, passwords and keys of the addresses in it replaced by stars.

    Rather too much than too little: of `http://host:80/a@b`, too, nothing is left before the @.
    """
    return _QUERY.sub(rf"\1{_STARS}", _USER.sub(f"{_STARS}@", text))
