"""From a pretrained network to maps: scenes in, Cloud-Optimised GeoTIFFs with their STAC items out."""
