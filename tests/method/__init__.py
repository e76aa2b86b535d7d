"""The method: models, their parts, scores and metrics."""
