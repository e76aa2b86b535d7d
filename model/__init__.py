"""Retrieval models by --arch, and the factory that builds them."""
