"""How the GPU's kernels divide what they read, so that whoever makes room for their results knows it too."""

LONGEST_ROW = 16_384
"""Numbers of a row that one block holds in its registers; what is longer is read twice."""
NUMBERS = 4096
"""Of a picture whose range is looked for, that one block reads at a time."""
PIXELS, CHANNELS = 32, 64
"""Of a picture whose channels' moments are taken, that one block reads at a time; the channels also when it is scaled.
"""


def numbers_of(length: int, most: int = 1024) -> int:
    """How many numbers of a picture one block finds the range of; every later block reads all ranges again."""
    return NUMBERS * max(1, -(-length // (NUMBERS * most)))


def parts_of(pixels: int, most: int = 32) -> tuple[int, int]:
    """How many parts the pixels of a picture make, and how many pixels are in each but the last."""
    part = PIXELS * max(1, -(-pixels // (PIXELS * most)))
    return -(-pixels // part), part


def pieces_of(pixels: int, channels: int, most: int = 1024) -> tuple[int, int, int]:
    """How a picture that is scaled is divided: pieces, pixels in each, and how many blocks share its channels."""
    across = -(-channels // CHANNELS)
    pixels_of_piece = 64 if -(-pixels // 64) * across <= most else 128
    return -(-pixels // pixels_of_piece), pixels_of_piece, across


def has_ranges(pixels: int, channels: int, most: int = 1024) -> bool:
    """Whether these blocks tell the ranges of what they write: every later block reads all of them."""
    pieces, _, across = pieces_of(pixels, channels)
    return pieces * across <= most
