"""Search spaces: one file, one question."""
