import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cromss import plot
from cromss.landcover import DYNAMIC_WORLD, IGNORE


def pixels(figure: Figure) -> np.ndarray:
    uri = plot.data_uri(figure)
    kind, _, text = uri.partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_the_band_of_seeds_is_worked_by_hand() -> None:
    """Seeds y = x and y = 3x; the second ends at x = 1."""
    long, short = (np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0])), (np.array([0.0, 1.0]), np.array([0.0, 3.0]))
    x, mean, low, high = plot.band([long, short])
    assert x.tolist() == [0, 1, 2]
    assert mean.tolist() == [0, 2, 2]
    assert low.tolist() == [0, 1, 2]
    assert high.tolist() == [0, 3, 2]


@pytest.mark.parametrize(("x", "whole"), [((1.0, 2.0), True), ((0.0, 0.2), False)])
def test_an_axis_of_epochs_has_no_halves_and_one_of_rates_has(x: tuple[float, ...], whole: bool) -> None:
    figure = plot.curves({"probe": {"midF": [(np.array(x), np.ones(2))]}}, {"midF": "#000000"}, "x")
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) > 1
    assert (ticks % 1 == 0).all() == whole


def test_wrong_labels_are_those_that_differ_where_both_are_known() -> None:
    label = np.array([[0, 1, IGNORE, 2]], np.uint8)
    clean = np.array([[0, 2, 1, IGNORE]], np.uint8)
    assert plot.wrong_labels(label, clean).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("number", range(len(DYNAMIC_WORLD)))
def test_a_class_is_drawn_in_the_colour_of_its_scheme(number: int) -> None:
    label = np.full((1, 8, 8), number, np.uint8)
    image = pixels(plot.panels([plot.Column("label", label, "classes", DYNAMIC_WORLD)]))
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    colours = colours[np.argsort(counts)[::-1]].tolist()
    wanted = [int(DYNAMIC_WORLD.colours[number][i : i + 2], 16) for i in (1, 3, 5)]
    assert wanted in colours[:2]  # the panel and its swatch; white paper is the other


def test_low_weights_are_darker_than_high_ones() -> None:
    weights = np.stack([np.zeros((8, 8)), np.ones((8, 8))]).astype(np.float16)
    image = pixels(plot.panels([plot.Column("w", weights, "weights")])).astype(float).sum(2)
    height = len(image)
    assert image[height // 4].min() < 200 < 400 < np.median(image[height * 5 // 8])


def test_a_figure_is_the_same_text_every_time() -> None:
    def draw() -> Figure:
        return plot.trajectories({"alpha": {"midF": (np.arange(5.0), np.linspace(1, 0.5, 5))}}, "epoch")

    assert plot.data_uri(draw()) == plot.data_uri(draw())
    assert plot.data_uri(draw()).startswith("data:image/svg+xml;base64,")


def test_random_is_grey_and_the_arms_keep_apart() -> None:
    arms = ["oracle", "midF", "CromSS-midF", "single-modal", "lateF", "CromSS-lateF", "random"]
    chosen = plot.colours(arms)
    assert chosen["random"] == plot.BASELINE
    assert chosen["oracle"] == plot.CEILING
    assert len(set(chosen.values())) == len(arms)
    assert plot.colours(arms[:3])["midF"] == chosen["midF"]


def test_the_confusion_matrix_prints_row_percentages_and_leaves_absent_classes_empty() -> None:
    figure = plot.confusion(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), ["a", "b", "c"], "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "100"]


def test_every_chart_draws_with_one_arm_and_missing_values() -> None:
    palette = plot.colours(["midF"])
    dots = {"S2 frozen": {"midF": plot.Dot([50.0], 50.0, None, 41.5)}}
    figures = [
        plot.ranking(dots, palette),
        plot.class_iou({"midF": [0.5, None]}, ["water", "trees"], palette, "S2"),
        plot.curves({"loss": {"midF": [(np.arange(3.0), np.ones(3))]}}, palette, "epoch"),
        plot.confidence_histogram(np.linspace(0, 1, 4), np.array([0, 0, 0]), np.array([1, 2, 3]), "S1"),
    ]
    assert all(plot.data_uri(figure).startswith("data:image/svg+xml") for figure in figures)


def test_drawing_leaves_the_global_style_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot.trajectories({"alpha": {"midF": (np.arange(3.0), np.ones(3))}}, "epoch")
    assert dict(matplotlib.rcParams) == before


def test_names_on_an_axis_stand_in_the_order_of_their_scores_and_numbers_to_scale() -> None:
    from cromss.plot.space import _heights

    named = _heights(plot.Axis("arm", ["b", "a", "b", "a"]), [1.0, 4.0, 2.0, 5.0])
    assert named.ticks == [(0.0, "b"), (1.0, "a")]
    assert all(abs(height - place) <= 0.05 for height, place in zip(named.heights, (0, 1, 0, 1), strict=True))
    assert named.heights[0] < named.heights[2]  # the better of two that share a name is above
    numbers = _heights(plot.Axis("lr", [1e-4, 1e-3, 1e-2], log=True), [1.0, 2.0, 3.0])
    assert numbers.heights == pytest.approx([0, 0.5, 1])
    assert [text for _, text in numbers.ticks] == ["0.0001", "0.01", "0.001"]


def test_a_film_shows_every_epoch_of_every_modality() -> None:
    still = [plot.Column("label", np.zeros((2, 8, 8), np.uint8), "classes", DYNAMIC_WORLD)]
    frames = [plot.Frame(f"epoch {e}", {m: np.full((2, 8, 8), e / 3) for m in ("W S2", "W S1")}) for e in (1, 2, 3)]
    figure = plot.film(still, frames, ["a", "b"])
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["label", "epoch 1", "epoch 2", "epoch 3"]
    shown = [
        float(axes.images[0].get_array().mean())
        for axes in figure.axes[:16]
        if axes.images and axes.images[0].get_array().ndim == 2
    ]
    assert shown == pytest.approx([1 / 3, 2 / 3, 1] * 4)
    assert [text.get_text() for text in figure.texts] == ["W S2", "W S1"] * 2


def test_responses_draw_points_without_an_interval_too() -> None:
    nan = float("nan")
    curve = plot.Curve([0.0, 0.2], [50.0, 40.0], [48.0, nan], [52.0, nan])
    figure = plot.responses({"S2": {"midF": curve}}, plot.colours(["midF"]), "rate", {"S2": "mIoU (%)"})
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [50.0, 40.0]
    assert len(figure.axes[0].collections[0].get_segments()) == 1


@pytest.mark.parametrize("names", [["midF"], ["CromSS-midF [ramp.kind=exponential, lr=0.002, rate=0.3]"] * 7])
def test_a_legend_is_never_wider_than_its_figure(names: list[str]) -> None:
    names = [f"{name} {number}" for number, name in enumerate(names)]
    lines = {name: [(np.arange(3.0), np.ones(3))] for name in names}
    figure = plot.curves({"loss": lines, "probe": lines}, dict.fromkeys(names, "#000000"), "epoch")
    figure.canvas.draw()
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
