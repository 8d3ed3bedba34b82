"""The edge of the doctor: one module a topic reads files, asks the kernel, or runs a tool, and judges nothing."""
