"""Encoders in and out: other people's checkpoints, other libraries' files.

layouts    one row = whose checkpoint: key prefixes, bands, input scaling
incoming   a checkpoint in one of these layouts -> our encoder with its card
bands      a first convolution for other bands, by name only
sources    where an encoder of ours is taken from
story      what the runs say about an encoder, number by number
feeding    a card as words, header keys and code, for people without cromss
libraries  the names that torchvision, timm, torchgeo and SMP give the same tensors, proven by the features
formats    one row = what can be written
onnx_file, huggingface    two of them; model_card, markdown
"""

from cromss.torchvision_cpu import make_importable

make_importable()
