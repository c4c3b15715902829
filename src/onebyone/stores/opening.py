"""Image files of every format, opened for reading by region."""

from __future__ import annotations

import glob
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebyone.atomic_files import kind_of_file, require_file
from onebyone.errors import BadInput, OnebyoneWarning
from onebyone.stores.axes import SlicedSource
from onebyone.stores.levels import chosen_level
from onebyone.stores.pictures import read_picture
from onebyone.stores.placement import placement_of
from onebyone.stores.regions import Region
from onebyone.stores.source import ImageSource

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, and the same of BigTIFF
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy")
_MAX_IMAGES = 10**6


def open_file(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    page: int | None = None,
    level: int | None = None,
    mpp: float | None = None,
    spatial: int = 2,
) -> ImageSource:
    """Open an image file for reading by region.

    Parameters
    ----------
    path
        a picture (PNG, JPEG, …), a TIFF of any kind, a whole slide, a Zarr store or a `.npy` file.
    axes
        the axes of the file, such as "CYX" for channels first; None takes what the file states.
    page
        the page or frame, from 0, of a file with several. None reads the first, with a warning where there are more.
    level, mpp
        the resolution level to read, by its number from 0 or by its microns per pixel.
    spatial
        spatial axes of the image: 1, 2 or 3.

    Raises
    ------
    BadInput
        where the file cannot be read, or has no such page, level or axes.
    MissingExtra
        where the library for its format is not installed.
    """
    options = {"axes": axes, "page": page, "level": level, "mpp": mpp, "spatial": spatial}
    return FileSource(_opened(Path(path), axes, page, level, mpp, spatial), Path(path), options)


class FileSource:
    """A source that was opened from a file; an `ImageSource`. It is pickled as the path, and opened again elsewhere.

    Raises BadInput where a region is read that is not inside the image.
    """

    def __init__(self, source: ImageSource, path: Path, options: dict[str, Any]) -> None:
        self._source, self._path, self._options = source, path, options
        self.size, self.channels, self.dtype = source.size, source.channels, source.dtype
        self.placement = placement_of(source)
        self.nodata: float | None = getattr(source, "nodata", None)
        self.has_mask: bool = getattr(source, "has_mask", False)

    def read(self, region: Region) -> NDArray[Any]:
        """The pixels of a region as (h, w, channels)."""
        self._require_inside(region)
        return self._source.read(region)

    def with_data(self, region: Region) -> NDArray[np.bool_]:
        """Whether each pixel of a region (h, w) is there; for a source with `has_mask`."""
        self._require_inside(region)
        source: Any = self._source
        flags: NDArray[np.bool_] = source.with_data(region)
        return flags

    def _require_inside(self, region: Region) -> None:
        for span, size in zip(region, self.size, strict=True):
            if not 0 <= span.start < span.stop <= size:
                raise BadInput(
                    f"{self._path}: a region of {region} was requested; the image has {self.size} pixels"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._path.absolute(), self._options)


def _reopened(path: Path, options: dict[str, Any]) -> ImageSource:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnebyoneWarning)  # it was given when the file was first opened
        return open_file(path, **options)


def _opened(
    file: Path, axes: str | None, page: int | None, level: int | None, mpp: float | None, spatial: int
) -> ImageSource:
    if file.is_dir():
        if not any((file / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
            raise BadInput(f"cannot read {file}: it is a folder and not a Zarr store; expected one image")
        from onebyone.stores.zarr_source import open_zarr

        return open_zarr(file, axes=axes, page=page, level=level, mpp=mpp, spatial=spatial)
    suffix = file.suffix.lower()
    require_file(file)
    if suffix == ".npy":
        if page is not None:
            raise BadInput(f"page={page}: only picture files have pages; image is {file.name}")
        chosen_level(str(file), [(1.0,) * spatial], None, level, mpp)
        return SlicedSource(map_npy(file), axes, spatial=spatial, name=str(file))
    if spatial != 2:
        raise BadInput(
            f"image is {file.name}, and the network slides over {spatial} axes; expected an array, or .npy"
        )
    return _picture(file, suffix, axes, page, level, mpp)


def _picture(
    file: Path, suffix: str, axes: str | None, page: int | None, level: int | None, mpp: float | None
) -> ImageSource:
    from onebyone.stores import slides

    if suffix in slides.SUFFIXES:
        if page is not None or axes is not None:
            raise BadInput(f"{file} is a whole slide: it has levels, and no page or axes to select")
        return slides.SlideSource(file, level, mpp)
    with file.open("rb") as stream:
        head = stream.read(4)
    if head in _TIFF:
        source = _tiff(file, axes, page, level, mpp)
        if source is not None:
            return source
    if axes is not None and axes.upper() not in ("YX", "YXC", "YXS"):
        raise BadInput(f"axes={axes!r}: {file} is a picture, whose axes are rows, columns and channels (YXC)")
    chosen_level(str(file), [(1.0, 1.0)], None, level, mpp)
    return SlicedSource(read_picture(file, page), name=str(file))


def _tiff(
    file: Path, axes: str | None, page: int | None, level: int | None, mpp: float | None
) -> ImageSource | None:
    from onebyone.stores import geotiff, tiff

    if axes is None and mpp is None and geotiff.is_georeferenced(file):
        return geotiff.GeoTiffSource(file, level or 0, page)
    if (axes, level, mpp) == (None, None, None) and not tiff.is_installed():
        return None  # Pillow reads many TIFFs as a whole
    return tiff.open_tiff(file, axes=axes, page=page, level=level, mpp=mpp)


def map_npy(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """The array in a `.npy` file, memory-mapped. Raises BadInput where it is not one, or holds Python objects."""
    kind = kind_of_file(path)
    if "(.npy)" not in kind:
        raise BadInput(f"{path} cannot be read as an array: it is {kind}; expected one NumPy array (.npy)")
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # NumPy evaluates the header with several parsers
        reason = "it contains Python objects, not numbers" if "object" in str(error) else str(error)
        raise BadInput(f"{path} cannot be read as an array: {reason}") from error


def image_paths(pattern: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The images that a path names: itself, the images in a folder, or those that match a pattern such as `a/*.png`.

    Raises BadInput where there is none.
    """
    path, text = Path(pattern), os.fspath(pattern)
    if path.is_dir() and not any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray")):
        found = sorted(p for p in path.iterdir() if _is_image(p))
    elif path.exists() or not glob.has_magic(text):
        return (path,)
    else:
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if _is_image(Path(p)))
    if not found:
        raise BadInput(
            f"{text}: no image is there; expected files that end in {', '.join(_PICTURES)}, slides or .zarr"
        )
    if len(found) > _MAX_IMAGES:
        raise BadInput(f"{text}: more than {_MAX_IMAGES:,} images are there")
    return tuple(found)


def _is_image(path: Path) -> bool:
    from onebyone.stores import slides

    suffix = path.suffix.lower()
    return suffix == ".zarr" if path.is_dir() else suffix in _PICTURES or suffix in slides.SUFFIXES
