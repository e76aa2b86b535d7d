"""Annotations -> (video, text) pairs; video decoding; transforms; loaders."""

import os

# A video that does not decode is reported once, by an InputError. OpenCV reads these when it is imported.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # libav's "quiet"
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
