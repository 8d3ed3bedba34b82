"""The benchmarks of netagent, as scripts/bench runs them: see docs/performance.md.

`__main__` runs the sections of `sections/` in turn and writes one report. A section measures in worker processes
(`worker`), each in a network namespace of its own, that look inside netagent through `seams`.
"""
