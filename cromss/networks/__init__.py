"""The networks of the paper on segmentation-models-pytorch."""

from cromss.torchvision_cpu import make_importable

make_importable()
