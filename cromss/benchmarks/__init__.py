"""What `cromss bench` measures: the stream of patches and the training step."""
