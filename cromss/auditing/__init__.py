"""The label-noise audit of a data set: which labels a pretrained network does not believe, and what it would say instead."""
