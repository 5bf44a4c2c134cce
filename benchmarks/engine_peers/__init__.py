"""The competitors of ``benchmarks/engine.py``, each in a process of its own, and the market that they all read."""
