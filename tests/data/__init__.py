"""The data: annotations, videos, frames, MovingShapes and the programs that prepare them."""
