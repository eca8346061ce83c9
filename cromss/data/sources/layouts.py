"""All layouts. A new one is its file and a line here: the command line and its help follow."""

from typing import Annotated, get_args

import pydantic

from cromss.data.sources.authors_lmdb import AuthorsLmdb
from cromss.data.sources.base import Source
from cromss.data.sources.bigearthnet import BigEarthNet
from cromss.data.sources.dfc2020 import Dfc2020
from cromss.data.sources.geotiff import GeoTiffTree
from cromss.data.sources.sen12ms import Sen12ms
from cromss.data.sources.ssl4eo import Ssl4eo
from cromss.data.sources.ssl4eo_downstream import Ssl4eoDownstream
from cromss.data.sources.ssl4eo_v11 import Ssl4eoV11
from cromss.data.sources.stac import Stac
from cromss.data.synthetic import SyntheticEarth

Layout = Annotated[
    GeoTiffTree
    | Ssl4eo
    | Ssl4eoV11
    | Dfc2020
    | Ssl4eoDownstream
    | Sen12ms
    | AuthorsLmdb
    | BigEarthNet
    | Stac
    | SyntheticEarth,
    pydantic.Field(discriminator="kind"),
]

LAYOUTS: dict[str, type[Source]] = {
    layout.model_fields["kind"].default: layout for layout in get_args(get_args(Layout)[0])
}
