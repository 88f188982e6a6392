"""Learning about a network from many images: as they come, on any devices, with checkpoints.

What the methods that are fitted to a network have in common: `Stream` reads and checks batches,
`Feed` gives them to the devices of all processes in one size, `Keeper` keeps checkpoints. All is
written so that the same images give the same result, interrupted or not.
"""

from jaxplain.methods.streaming.feed import Batch, Feed, ImageType, Progress, as_input
from jaxplain.methods.streaming.keeper import Keeper, Kept
from jaxplain.methods.streaming.stream import Piece, Position, Stream, classes_of

__all__ = [
    "Batch",
    "Feed",
    "ImageType",
    "Keeper",
    "Kept",
    "Piece",
    "Position",
    "Progress",
    "Stream",
    "as_input",
    "classes_of",
]
