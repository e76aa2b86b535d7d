"""Programs to run before training: check_data, cache_frames, compress_video."""
