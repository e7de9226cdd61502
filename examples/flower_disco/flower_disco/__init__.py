"""DISCO with Flower."""
