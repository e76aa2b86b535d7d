"""Evaluation of a model: features of a split, scores of all pairs, tables and results.json."""
