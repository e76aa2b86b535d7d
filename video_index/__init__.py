"""Search in a person's own videos: an index of their features on disk, kept up to date, and queries over it."""
