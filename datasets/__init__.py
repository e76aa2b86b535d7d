"""Annotations -> (video, text) pairs; video decoding; transforms; loaders."""
