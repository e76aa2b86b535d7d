"""The configuration of a run: one typed Config, declared once."""

from config.config import Config

__all__ = ["Config"]
