"""The configuration of a run: one typed Config, declared once."""

from config.config import Config
from config.search import SearchConfig

__all__ = ["Config", "SearchConfig"]
