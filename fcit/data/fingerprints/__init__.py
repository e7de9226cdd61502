"""Fingerprints: hashes of what a run rests on, and comparing them."""
