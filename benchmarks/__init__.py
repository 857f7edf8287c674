"""Measurements of jnet against its rivals. `python -m benchmarks --help` lists the commands."""
