"""The page of `search.py serve`: a search box, and results that play."""
