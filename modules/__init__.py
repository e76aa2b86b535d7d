"""Parts of the retrieval models. They take plain arguments, never a config object, and can be used alone."""
