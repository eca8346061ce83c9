import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cromss.objective.losses import as_targets
from cromss.objective.smoothing import NoSmoothing, SpatioTemporal, blend, gaussian_blur, smooth_labels


@pytest.fixture
def seasons():
    labels = torch.randint(0, 3, (2, 4, 15, 9), generator=torch.Generator().manual_seed(3))
    labels[:, :, :2, :3] = 255
    return labels


def renormalised(shares):
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize(("sigma", "truncate"), [(3.0, 4.0), (1.0, 4.0), (0.7, 2.0), (6.0, 4.0)])
def test_the_blur_is_scipys_gaussian_filter_with_its_default_borders(sigma, truncate):
    images = torch.rand(2, 3, 15, 9, dtype=torch.float64)
    expected = gaussian_filter(images.numpy(), sigma, truncate=truncate, axes=(2, 3), mode="reflect")
    np.testing.assert_allclose(gaussian_blur(images, sigma, truncate), expected, rtol=1e-12)


def test_smoothed_labels_agree_with_their_formula_in_scipy(seasons):
    labels = seasons[:, 1]
    onehots = np.stack([as_targets(s, 3).double().numpy() for s in seasons.unbind(1)])
    in_space, in_time = (
        renormalised(gaussian_filter(x, 3, truncate=4, axes=(2, 3))) for x in (onehots[1], onehots.mean(0))
    )
    expected = 0.8 * onehots[1] + 0.15 * (in_space + in_time) / 2 + 0.05 / 3
    expected = np.where((labels == 255).numpy()[:, None], 0, expected)
    np.testing.assert_allclose(smooth_labels(labels, seasons, 3), expected, atol=1e-6)
    torch.testing.assert_close(SpatioTemporal()(labels, seasons, 3), smooth_labels(labels, seasons, 3))


def test_smoothed_labels_are_distributions_and_zero_where_ignored(seasons):
    total = smooth_labels(seasons[:, 0], seasons, 3).sum(1)
    torch.testing.assert_close(total, (seasons[:, 0] != 255).float())


def test_a_uniform_landscape_keeps_its_labels_but_for_the_uniform_share():
    labels = torch.full((1, 6, 6), 2)
    labels[0, 0] = 255
    smooth = smooth_labels(labels, labels[:, None], 4, a=0.3, b=0.2)[0, :, 3, 3]
    torch.testing.assert_close(smooth, torch.tensor([0.05, 0.05, 0.85, 0.05]))


def test_a_season_without_labels_changes_nothing(seasons):
    padded = torch.cat([seasons, torch.full_like(seasons[:, :1], 255)], 1)
    torch.testing.assert_close(smooth_labels(seasons[:, 0], padded, 3), smooth_labels(seasons[:, 0], seasons, 3))


def test_without_smoothing_the_labels_are_returned_one_hot(seasons):
    assert torch.equal(smooth_labels(seasons[:, 0], seasons, 3, a=0, b=0), as_targets(seasons[:, 0], 3))
    assert NoSmoothing()(seasons[:, 0], None, 3) is None


def test_smoothing_stays_in_full_precision_under_autocast(seasons):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        smooth = smooth_labels(seasons[:, 0], seasons, 3)
    assert torch.equal(smooth, smooth_labels(seasons[:, 0], seasons, 3))


def test_the_blend_equals_the_golden_numbers(golden):
    numbers = golden("s01_*")
    onehot = as_targets(torch.from_numpy(numbers["labels"]), 9)
    a, b = numbers["lsf"].tolist()
    smooth = blend(onehot, torch.from_numpy(numbers["prior"]), a, b)
    np.testing.assert_allclose(smooth, numbers["code_y_smooth"], rtol=1e-5)
