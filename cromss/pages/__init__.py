"""The sections of the report, by theme. Each is a function of a `Run` (what a run folder holds) that returns what its part
of the template needs, or nothing where the files for it are not there."""
