"""What a file that starts a cluster may not say: one file here = one kind of file."""
