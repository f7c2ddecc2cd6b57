"""Makes a smaller JPEG of a larger one: of the pieces between restart markers that a region needs.

The bytes behind a restart marker depend on no bytes before it. So pieces can be joined anew under
a header with another size, and any decoder gives their pixels. Without markers a file can at least
be made shorter: rows of blocks depend on none below them. What is read is a stranger's: each
length and marker is compared with what there is, and a file that does not fit, or is not known to
give the same pixels, is not taken apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Box, ImageSize
from pipeline.views.compiled import kernel

__all__ = ["PiecesHeader", "SmallerJpeg", "join_pieces", "read_header", "shorten"]

_FRAME, _SCAN, _INTERVAL = 0xC0, 0xDA, 0xDD  # kinds of marker: baseline alone, of frames
_PASSED_OVER = frozenset({0xC4, 0xDB, 0xFE, *range(0xE0, 0xF0)})  # tables, and what is for people
_RESTART, _END = 0xD0, 0xD9
_SAMPLINGS: Mapping[int, tuple[int, int]] = {  # of luma, down and across; chroma has 1 x 1
    0x11: (1, 1),
    0x21: (1, 2),
    0x12: (2, 1),
    0x22: (2, 2),
    0x41: (1, 4),
}
_SEARCHED = 64  # bytes at a time: most are no part of a marker
_LEAST_CHROMA = 3  # samples; of fewer, libjpeg enlarges chroma in another way


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecesHeader:
    """What the header of a JPEG says that can be taken apart."""

    size: ImageSize
    size_offset: int  # bytes to the size: height and width, two bytes each
    first: int  # bytes to the first piece
    sampling: tuple[int, int]  # pixels of a sample of chroma, down and across
    blocks: int  # of a piece; a row of blocks has whole pieces. 0 where there are no markers

    @property
    def piece(self) -> ImageSize:
        """The size of a piece, in pixels."""
        down, across = self.sampling
        return ImageSize(height=8 * down, width=8 * across * self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallerJpeg:
    """A smaller JPEG, and which pixels of the larger one it has."""

    data: NDArray[np.uint8]
    box: Box


def read_header(data: bytes | memoryview) -> PiecesHeader | None:
    """Return what the header of a JPEG says, None for one that cannot be taken apart.

    Whatever is not baseline, has more than one scan, or a sampling of which it is not proven that
    pieces give the same pixels, is not.
    """
    at, interval = 2, 0
    frame = None
    while at + 4 <= len(data):
        kind, length = data[at + 1], 2 + (data[at + 2] << 8 | data[at + 3])
        segment = bytes(data[at : at + length])
        if data[at] != 0xFF or length < 4 or len(segment) < length:
            return None
        if kind == _FRAME and frame is None:
            frame = at, segment
        elif kind == _INTERVAL and length == 6:
            interval = segment[4] << 8 | segment[5]
        elif kind == _SCAN and frame is not None:
            return _understand(*frame, segment, interval, at + length)
        elif kind not in _PASSED_OVER:
            return None
        at += length
    return None


def _understand(
    frame_offset: int, frame: bytes, scan: bytes, interval: int, first: int
) -> PiecesHeader | None:
    """Return what the two segments before the pieces say together."""
    components = frame[9] if len(frame) > 9 else 0
    if components not in (1, 3) or frame[4] != 8 or len(frame) != 10 + 3 * components:
        return None
    if scan[5 + 2 * components :] != b"\x00\x3f\x00" or scan[4] != components:
        return None
    sampling, *others = frame[11::3]
    if sampling not in _SAMPLINGS or any(one != 0x11 for one in others):
        return None
    if components == 1 and sampling != 0x11:
        return None
    height, width = frame[5] << 8 | frame[6], frame[7] << 8 | frame[8]
    header = PiecesHeader(
        size=ImageSize(height=height, width=width),
        size_offset=frame_offset + 5,
        first=first,
        sampling=_SAMPLINGS[sampling],
        blocks=interval,
    )
    in_a_row = -(-width // (8 * header.sampling[1]))
    whole = height and width and not (interval and in_a_row % interval)
    return header if whole else None


def join_pieces(
    data: bytes | memoryview, header: PiecesHeader, box: Box, spare: int
) -> SmallerJpeg | None:
    """Return a JPEG of the pieces that a box of pixels needs.

    It is None if it would not have ``spare`` pixels less than all, or if the pieces are not what
    the header says.
    """
    size, piece = header.size, header.piece
    rows, columns = -(-size.height // piece.height), -(-size.width // piece.width)
    down, across = header.sampling
    top, bottom = _pieces_of(box.top, box.height, size.height, piece.height, down)
    left, right = _pieces_of(box.left, box.width, size.width, piece.width, across)
    found = Box(
        top=top * piece.height,
        left=left * piece.width,
        height=min(size.height, bottom * piece.height) - top * piece.height,
        width=min(size.width, right * piece.width) - left * piece.width,
    )
    if size.height * size.width - found.area < spare:
        return None
    joined = np.empty(len(data), np.uint8)
    bytes_joined = _join(
        np.frombuffer(data, np.uint8),
        header.first,
        (rows, columns),
        (top, bottom, left, right),
        joined,
    )
    if not bytes_joined:
        return None
    return _resized(joined[:bytes_joined], header, found)


def shorten(
    data: bytes | memoryview, header: PiecesHeader, box: Box, spare: int
) -> SmallerJpeg | None:
    """Return the same JPEG with a smaller height in its header: down to what a box of pixels needs.

    A decoder stops there, and warns of the bytes that are left. It is None if it would not have
    ``spare`` pixels less than all.
    """
    size, row = header.size, 8 * header.sampling[0]
    _, rows = _pieces_of(0, box.top + box.height, size.height, row, header.sampling[0])
    found = Box(top=0, left=0, height=min(size.height, rows * row), width=size.width)
    if size.height * size.width - found.area < max(1, spare):
        return None
    return _resized(np.frombuffer(data, np.uint8).copy(), header, found)


def _resized(data: NDArray[np.uint8], header: PiecesHeader, box: Box) -> SmallerJpeg:
    """Write the size of a box into the header of a JPEG that has its pixels."""
    says = box.height.to_bytes(2) + box.width.to_bytes(2)
    data[header.size_offset : header.size_offset + 4] = tuple(says)
    return SmallerJpeg(data=data, box=box)


def _pieces_of(start: int, length: int, whole: int, piece: int, sampling: int) -> tuple[int, int]:
    """Return the first piece that some lines of pixels need, and one past the last."""
    # One pixel more on each side: enlarging chroma looks at its neighbors.
    first = max(0, start - 1) // piece
    end = min(-(-whole // piece), -(-(start + length + 1) // piece))
    if first and min(whole, end * piece) - first * piece < _LEAST_CHROMA * sampling:
        first -= 1
    return first, end


@kernel(boundscheck=True)  # what is read is a stranger's; it costs nothing here
def _join(data, first, pieces, needed, result):
    """Write header and needed pieces of a JPEG into ``result``, and return how many bytes they are.

    ``pieces`` is how many there are, down and across, ``needed`` the first and one past the last of
    each. Returns 0 if there are not just so many, with their markers counted as they should be.
    """
    rows, columns = pieces
    top, bottom, left, right = needed
    if rows * columns > len(data) // 2:  # a marker has two bytes: so a header asks for no memory
        return 0
    ends = np.empty(rows * columns, np.int64)
    if not _find_ends(data, first, ends):
        return 0
    _copy(data, 0, first, result, 0)
    at, count = first, 0
    for row in range(top, bottom):
        begin, end = row * columns + left, row * columns + right
        start = ends[begin - 1] if begin else first
        _copy(data, start, ends[end - 1], result, at)
        for piece in range(begin, end):
            result[at + ends[piece] - start - 1] = _RESTART + count % 8
            count += 1
        at += ends[end - 1] - start
    result[at - 1] = _END
    return at


@kernel(boundscheck=True)
def _copy(data, start, end, result, at):
    # Unsigned, or numba looks for negative indices in each step.
    source, target = np.uint64(start), np.uint64(at)
    for i in range(np.uint64(end - start)):
        result[target + i] = data[source + i]


@kernel(boundscheck=True)
def _find_ends(data, first, ends):
    """Find where each piece and the marker behind it end; return whether all are as they should be.

    Where a byte is 255, the next tells a marker from a byte of a piece (0), or is 255 once more.
    """
    at, last, found = np.uint64(first), np.uint64(len(data) - 1), 0
    one, many = np.uint64(1), np.uint64(_SEARCHED)
    while at < last:
        stop = min(at + many, last)
        marked = np.uint8(0)
        for i in range(at, stop):
            marked |= np.uint8(data[i] == 0xFF)
        if not marked:
            at = stop
            continue
        while at < stop:
            kind = data[at + one]
            if data[at] != 0xFF or kind == 0xFF:
                at += one
                continue
            at += one + one
            if kind == 0:
                continue
            if kind != (_END if found == len(ends) - 1 else _RESTART + found % 8):
                return False
            ends[found] = at
            found += 1
            if found == len(ends):
                return True
    return False
