"""Variables of MATLAB's ``.mat`` files, of version 5 to 7 and of version 7.3, which is HDF5, alike.

What reads them is loaded when a file is read: every training that has none saves its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veilmark.run.errors import DataError

if TYPE_CHECKING:
    import h5py


def _variable(path: Path, found: Any, name: str) -> Any:
    """A variable of an open file."""
    if name not in found:
        known = ", ".join(sorted(key for key in found if not key.startswith(("#", "__"))))
        raise DataError(f"{path} has no variable {name!r} (it has {known}); is it the published file?")
    return found[name]


def _load_old(path: Path, name: str) -> Any:
    """A variable of a file that is not HDF5."""
    import scipy.io

    try:
        found = scipy.io.loadmat(path, variable_names=[name], chars_as_strings=True)
    except (OSError, ValueError, TypeError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
        raise DataError(f"{path} is not a readable MATLAB file ({error}); fetch it again") from error
    return _variable(path, found, name)


def _open_hdf5(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is not a readable MATLAB file ({error}); fetch it again") from error


def read_array(path: Path, name: str) -> NDArray[Any]:
    """A numeric variable, in MATLAB's own shape.

    Args:
        path: The file.
        name: The variable.

    Raises:
        DataError: If the file is damaged or lacks the variable; the message names both.
    """
    import h5py

    if not h5py.is_hdf5(path):
        return np.asarray(_load_old(path, name))
    with _open_hdf5(path) as file:
        # HDF5 has the axes in the opposite order.
        return np.asarray(_variable(path, file, name)[()]).T


def read_cells(path: Path, name: str) -> Iterator[NDArray[Any]]:
    """The arrays of a cell array, one after the other, each in MATLAB's own shape.

    Args:
        path: The file.
        name: The variable.

    Raises:
        DataError: If the file is damaged, lacks the variable, or holds no cells there.
    """
    import h5py

    if not h5py.is_hdf5(path):
        cells = np.asarray(_load_old(path, name))
        if cells.dtype != object:
            raise DataError(f"{path}: {name!r} is no cell array; is it the published file?")
        yield from (np.asarray(cell) for cell in cells.ravel(order="F"))
        return
    with _open_hdf5(path) as file:
        references = _variable(path, file, name)
        if references.dtype != h5py.ref_dtype:
            raise DataError(f"{path}: {name!r} is no cell array; is it the published file?")
        for reference in references[()].ravel():
            yield np.asarray(file[reference][()]).T


def read_strings(path: Path, name: str) -> list[str]:
    """The texts of a cell array of character arrays.

    Args:
        path: The file.
        name: The variable.

    Raises:
        DataError: As :func:`read_cells`.
    """
    return [_text(cell) for cell in read_cells(path, name)]


def _text(cell: NDArray[Any]) -> str:
    if cell.dtype.kind == "U":
        return "".join(cell.ravel().tolist())
    # HDF5 has a text as the 16-bit codes of its letters.
    return "".join(chr(int(code)) for code in cell.ravel(order="F"))
