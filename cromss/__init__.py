"""cromss: pretraining of Sentinel-1/2 segmentation encoders with noisy labels."""

__version__ = "0.1.0"
