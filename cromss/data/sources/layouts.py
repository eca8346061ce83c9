"""All layouts. A new one is its file and a line here: the command line and its help follow."""

from typing import Annotated, get_args

import pydantic

from cromss.data.sources.base import Source
from cromss.data.sources.dfc2020 import Dfc2020
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.synthetic import SyntheticEarth

Layout = Annotated[
    GeoTiffTree | Ssl4eo | Dfc2020 | SyntheticEarth,
    pydantic.Field(discriminator="kind"),
]

LAYOUTS: dict[str, type[Source]] = {
    layout.model_fields["kind"].default: layout for layout in get_args(get_args(Layout)[0])
}
