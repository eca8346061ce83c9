"""The pictures: one look for the report, MLflow and notebooks.

Every function takes plain arrays and returns a matplotlib `Figure`; `data_uri` turns one into text for an HTML page.
"""

from cromss.plot.lines import Line, band, curves, trajectories
from cromss.plot.look import (
    BASELINE,
    CEILING,
    FAINT,
    GRID,
    INK,
    PALETTE,
    RIGHT,
    STYLE,
    WRONG,
    colours,
    data_uri,
    styled,
)
from cromss.plot.one_patch import panel
from cromss.plot.patches import Column, Frame, film, panels, short, wrong_labels
from cromss.plot.scores import Dot, class_iou, confidence_histogram, confusion, ranking
from cromss.plot.space import Axis, Curve, importance, parallel, responses

__all__ = [
    "BASELINE", "CEILING", "FAINT", "GRID", "INK", "PALETTE", "RIGHT", "STYLE", "WRONG",
    "Axis", "Column", "Curve", "Dot", "Frame", "Line",
    "band", "class_iou", "colours", "confidence_histogram", "confusion", "curves", "data_uri", "film", "importance", "panel",
    "panels", "parallel", "ranking", "responses", "short", "styled", "trajectories", "wrong_labels",
]  # fmt: skip
