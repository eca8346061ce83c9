"""What the versions of SSL4EO-S12 share: the NoLDO-S12 labels and the csv that says which of them are complete.

dw_noisy_labels/<id>/<S2 product>/label.tif      dw_complete_ids.csv: id,sub1,...,sub4, with or without a header
"""

import csv
import re
from pathlib import Path
from typing import ClassVar

import pydantic

from cromss.data.sources.imagery import ImagerySource

STAMP = re.compile(r"(?<!\d)(\d{8})T\d{6}(?!\d)")  # date and time in a product's name; the first is when it was taken


class NoldoLabelled(ImagerySource):
    """Imagery of SSL4EO-S12 locations with the Dynamic World labels of NoLDO-S12."""

    scheme: ClassVar[str] = "dynamic-world"

    labels: Path | None = pydantic.Field(None, description="folder of the labels; default SRC/dw_noisy_labels")
    ids: Path | None = pydantic.Field(
        None, description="csv of id,season,season,...; default SRC/dw_complete_ids.csv where there is one"
    )

    @property
    def labels_folder(self) -> Path:
        """Where the labels lie."""
        return self.labels or self.path / "dw_noisy_labels"

    def listed(self) -> dict[str, list[str]] | None:
        """Location id -> its seasons, from the csv; None where there is no csv. Raises ValueError when a csv that was
        named is missing, or one holds nothing of use."""
        file = self.ids or self.path / "dw_complete_ids.csv"
        if self.ids is None and not file.is_file():
            return None
        try:
            with file.open(newline="") as lines:
                rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{file}: cannot be read ({error})") from None
        rows = [row for row in rows if row and row[0].isdigit()]  # a header's first cell is no number
        if not rows:
            raise ValueError(f"{file}: holds no row of id,season,season,...")
        return {f"{int(row[0]):07d}": [cell for cell in row[1:] if cell] for row in rows}
