"""cromss: pretraining of Sentinel-1/2 segmentation encoders with noisy labels.

For notebooks and scripts, each imported when it is first used:

    cromss.open_store(path)                   a patch store
    cromss.load_encoder(path_or_run, "s2")    a pretrained encoder: pixels in the sensor's unit -> features
    cromss.plot.panel(patch, store.scheme)    one patch as a picture
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> (module, attribute; None = the module itself). By text: `import cromss` stays light, and no arrow points up.
_LAZY = {
    "load_encoder": ("cromss.api.encoder", "load_encoder"),
    "open_store": ("cromss.api.store", "open_store"),
    "plot": ("cromss.plot", None),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'cromss' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = importlib.import_module(module)
    globals()[name] = found = found if attribute is None else getattr(found, attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
