"""What is measured, a module each: its role in the worker processes, and `run`, which makes a section of the report."""
