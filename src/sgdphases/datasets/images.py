"""Images of many sizes and kinds of encoding, decoded into one array."""

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sgdphases.datasets.arrays import ArrayWriter
from sgdphases.datasets.progress import Progress
from sgdphases.errors import InputError

Source = TypeVar("Source")

IMAGES_AT_ONCE = 256
# Modes of Pillow whose values are those of 8-bit grey or colour images, or are turned into them.
GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"})


def read_size_and_mode(path: Path) -> tuple[tuple[int, int], str]:
    """Read the head of an image file.

    Args:
        path: The file.

    Returns:
        (height, width), and Pillow's mode, such as L or RGB.

    Raises:
        InputError: It is no image, or one of more than 8 bits.
    """
    with _open(path, str(path)) as image:
        return (image.height, image.width), image.mode


def decode(
    content: bytes, where: str, num_channels: int, size: tuple[int, int], resizes: bool
) -> npt.NDArray[np.uint8]:
    """Decode an image.

    Args:
        content: The encoded image, in any format that Pillow reads.
        where: What to call it in messages.
        num_channels: 3 for colours, to which grey images are turned; 1 for grey.
        size: (height, width) of the result.
        resizes: Whether an image of another size is brought to it: its shorter side to the shorter
            side of `size` (bilinear, with antialiasing), then the centre cut out.

    Returns:
        Array of shape (height, width, num_channels).

    Raises:
        InputError: It is damaged, no image, or of another size.
    """
    from PIL import Image, ImageOps

    with _open(io.BytesIO(content), where) as image:
        height, width = size
        if not resizes and (image.height, image.width) != size:
            raise InputError(
                f"{where}: {image.height} x {image.width} pixels; allowed: {height} x {width}"
            )
        with _reporting_damage(where):
            converted = image.convert("RGB" if num_channels == 3 else "L")
    if converted.size != (width, height):
        converted = ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(converted).reshape(height, width, num_channels)


def store_images(
    path: Path,
    images: Iterable[tuple[str, Source]],
    num_images: int,
    read: Callable[[Source], bytes],
    num_channels: int,
    size: tuple[int, int],
    resizes: bool,
    num_threads: int,
) -> None:
    """Decode images into an array file, several at a time.

    Args:
        path: The array file to write, of shape (num_images, *size, num_channels), uint8.
        images: What to call each in messages, and what `read` reads it from.
        num_images: Their number, for the log.
        read: Gives the encoded image.
        num_channels: As `decode` takes it.
        size: As `decode` takes it.
        resizes: As `decode` takes it.
        num_threads: How many are decoded at a time.

    Raises:
        InputError: An image is damaged, no image, or of another size.
    """

    def decode_one(image: tuple[str, Source]) -> npt.NDArray[np.uint8]:
        where, source = image
        return decode(read(source), where, num_channels, size, resizes)

    progress = Progress(f"{path.stem}: decoding images", num_images, "images")
    remaining = iter(images)
    with (
        ArrayWriter(path, (*size, num_channels), np.uint8) as writer,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        for batch in iter(partial(_take, remaining, IMAGES_AT_ONCE), []):
            writer.append(np.stack(list(pool.map(decode_one, batch))))
            progress.update(writer.num_samples)


def _take(images: Iterable[tuple[str, Source]], number: int) -> list[tuple[str, Source]]:
    return list(islice(images, number))


def _open(file: Path | io.BytesIO, where: str) -> Any:
    """Open an image and check that it is one of 8 bits."""
    from PIL import Image

    with _reporting_damage(where):
        image = Image.open(file)
    if image.mode not in GREY_MODES | COLOUR_MODES:
        image.close()
        raise InputError(f"{where}: pixels of mode {image.mode}; allowed: 8-bit grey or colours")
    return image


@contextmanager
def _reporting_damage(where: str) -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        raise InputError(f"{where}: not an image, or a damaged one") from error
    except (Image.DecompressionBombError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{where}: damaged image: {error}") from error
    except OSError as error:
        # Pillow reports damage as an error of the system without a number.
        if error.errno is not None:
            raise
        raise InputError(f"{where}: damaged image: {error}") from error
