"""Timing of ddgan_fast against its baselines.

Installed as ``ddgan_fast.benchmarks``; ``benchmarks`` in the tree. Modules here import each other
relatively, so that they work under both names.
"""
