"""Files of people as raw examples: pictures, CSV, NPY and texts, each as a model's recipe needs them."""

from __future__ import annotations

import csv
import io
import math
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingExtraError
from ..recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_examples"]

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_MOST_PIXELS = 1 << 26
_ORIENTATION = 0x0112  # of EXIF
_TURNS: dict[Any, Any] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # its values -> Pillow's Transpose


def read_examples(path: Path, recipe: Recipe, resize: bool = False) -> NDArray[Any] | list[str]:
    """Return the raw examples in a file, [N, *recipe.shape] or N texts.

    A picture is one example. A NPY file holds one example or N. A CSV file holds an example a line: the columns that
    the recipe names by its header, else all numbers of an example in order, or texts in a column ``text``. Any other
    file is read as text, an example a line, where the model takes texts.

    Args:
        path: the file.
        recipe: what the model takes.
        resize: bring a picture of another size to the model's.

    Raises:
        DataError: the file is missing, damaged, of another type, shape or size, or a cell is no number.
        MissingExtraError: it is a picture, and pillow is not installed.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path} is no file: name pictures, CSV or NPY files")
    if ending in _PICTURES:
        return _picture(path, recipe, resize)
    if ending == ".npy":
        return _array(path, recipe)
    if ending == ".csv":
        return _table(path, recipe)
    if recipe.kind == "text":
        lines = [line for line in _read_text(path).splitlines() if line.strip()]
        return list(_some(lines, path))
    raise DataError(f"{path} is of no known type: name pictures ({', '.join(_PICTURES[:3])}), CSV or NPY files")


def _picture(path: Path, recipe: Recipe, resize: bool) -> NDArray[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("reading pictures", "export") from error
    shape = recipe.shape
    if recipe.kind != "picture" or len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)):
        fitting = "a file of texts" if recipe.kind == "text" else "a NPY file of that shape"
        raise DataError(f"{path} is a picture, but the model takes {_wanted(recipe)}: name {fitting}")
    width, height = shape[-1], shape[-2]
    colours = "RGB" if len(shape) == 3 and shape[0] == 3 else "L"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged notes beside the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as stored:
                if stored.width * stored.height > _MOST_PIXELS:
                    raise DataError(f"{path} has {stored.width} x {stored.height} pixels: make it smaller")
                picture = _upright(stored)
                if picture.mode.startswith(("I", "F")):
                    raise DataError(
                        f"{path} has more than 8 bits a pixel: bring it to 8 first, for it would be clipped"
                    )
                if picture.has_transparency_data:
                    picture = picture.convert("RGBA")
                    if np.asarray(picture)[..., 3].min() < 255:
                        raise DataError(f"{path} is transparent in places: put it on the background it should have")
                if picture.size != (width, height):
                    if not resize:
                        raise DataError(
                            f"{path} has {picture.width} x {picture.height} pixels, but the model takes {width} x"
                            f" {height}: bring it to that size, or add --resize"
                        )
                    loaded = picture.convert(colours).resize((width, height), Image.Resampling.BILINEAR)
                else:
                    loaded = picture.convert(colours)
                pixels = np.asarray(loaded, np.float64)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} cannot be read as a picture ({_reason(error)}): get it again") from error
    if colours == "RGB":
        pixels = np.moveaxis(pixels, -1, 0)
    if recipe.brightest not in (0, 255):
        pixels = pixels * (recipe.brightest / 255)
    return pixels.reshape(1, *shape)


def _upright(picture: Image.Image) -> Image.Image:
    """Turn a photograph as its camera says that it was held; what cannot be read of that is left aside."""
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, struct.error):
        return picture
    return picture if turn is None else picture.transpose(turn)


def _array(path: Path, recipe: Recipe) -> NDArray[Any]:
    if recipe.kind == "text":
        raise DataError(f"{path} holds numbers, but the model takes {_wanted(recipe)}: name a file of texts")
    try:
        # Mapped, not read: a header that promises more than there is allocates nothing.
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
        why = _reason(error) if isinstance(error, OSError) else "it is none, or is damaged"
        raise DataError(f"{path} cannot be read as a NPY file ({why}): save it with numpy.save") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "buif":
        kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
        raise DataError(f"{path} is an array of {kind}: it must hold real numbers")
    if found.shape == recipe.shape:
        found = found[np.newaxis]
    if found.shape[1:] != recipe.shape or found.ndim == 0:
        raise DataError(f"{path} has shape {list(found.shape)}, but the model takes {_wanted(recipe)}")
    if not len(found):
        raise DataError(f"{path} holds no examples")
    return found


def _table(path: Path, recipe: Recipe) -> NDArray[Any] | list[str]:
    try:
        lines = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
        rows = [(lines.line_num, row) for row in lines if row]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file ({error}): get it again") from error
    if not rows:
        raise DataError(f"{path} is empty")
    header = rows[0][1]
    if recipe.kind == "text":
        if "text" not in header:
            raise DataError(f'{path} has no column "text": add it, or name a file with one text a line')
        at = header.index("text")
        return list(_some([_cell(row, at, path, line) for line, row in rows[1:]], path))
    has_names = not any(map(_is_number, header)) and any(cell.strip() and _float(cell) is None for cell in header)
    if recipe.columns and (has_names or set(recipe.columns) & set(header)):
        found = [_places(column, header, recipe.columns) for column in recipe.columns]
        missing = [column for column, places in zip(recipe.columns, found, strict=True) if not places]
        if missing:
            raise DataError(f'{path} has no column "{missing[0]}" ({len(missing)} are missing): add it')
        for column, places in zip(recipe.columns, found, strict=True):
            if len(places) > 1:
                raise DataError(f'{path} has column "{column}" {len(places)} times: keep one of them')
        columns: Sequence[int] = [places[0] for places in found]
        names, rows = header, rows[1:]
    else:
        count = math.prod(recipe.shape)
        columns, names = range(count), [f"cell {i + 1}" for i in range(count)]
        if has_names and len(header) == count:
            names, rows = header, rows[1:]
        for line, row in rows:
            if len(row) != count:
                raise DataError(
                    f"{path}, line {line}: {len(row)} cells, but the model takes {count} numbers an example: drop other"
                    " columns, such as the answers"
                )
    values = np.empty((len(_some(rows, path)), len(columns)))
    for i, (line, row) in enumerate(rows):
        for j, at in enumerate(columns):
            cell = _cell(row, at, path, line)
            if not _is_number(cell):
                raise DataError(f'{path}, line {line}: {names[at]} = "{cell[:40]}" is no finite number; mend the cell')
            values[i, j] = float(cell)
    return values.reshape(len(values), *recipe.shape)


def _places(column: str, header: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Return where a column is: by its name, else by one that differs in spaces around it or upper and lower case."""
    exact = [at for at, cell in enumerate(header) if cell == column]
    same = column.strip().casefold()
    return exact or [at for at, cell in enumerate(header) if cell.strip().casefold() == same and cell not in columns]


def _cell(row: list[str], at: int, path: Path, line: int) -> str:
    if at >= len(row):
        raise DataError(f"{path}, line {line}: it has {len(row)} cells, but cell {at + 1} is needed")
    return row[at]


def _is_number(cell: str) -> bool:
    number = _float(cell)
    return number is not None and math.isfinite(number)


def _float(cell: str) -> float | None:
    """Return a cell's number, which may be NaN or infinite; None where it is a word or blank."""
    try:
        return float(cell)
    except ValueError:
        return None


def _some(items: Any, path: Path) -> Any:
    if not items:
        raise DataError(f"{path} holds no examples")
    return items


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8 ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _wanted(recipe: Recipe) -> str:
    if recipe.kind == "text":
        return "texts"
    return f"examples of shape {list(recipe.shape)}"
