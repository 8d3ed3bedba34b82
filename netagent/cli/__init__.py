"""The command line: the only place that knows click, and the only one that exits."""
