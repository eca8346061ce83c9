"""One file = one on-disk layout."""
