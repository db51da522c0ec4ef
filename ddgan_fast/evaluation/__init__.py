"""Judges of what a generator draws."""
