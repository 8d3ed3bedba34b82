"""What goes into a bug report: no secrets (`redaction`), bounded and in order (`archive`), with the facts of the host
(`host`)."""
