"""The seal of a Parquet file, which our readers check before PyArrow sees a byte.

Nothing in Parquet guards a footer, and PyArrow believes what it says: a flipped bit there gives
other labels, or ends the process. So a mark and a SHA-256 lie between the last page and the
footer, where readers of Parquet, which go by offsets, pass over them.
"""

from __future__ import annotations

import io
from hashlib import sha256 as new_sha256
from typing import BinaryIO

__all__ = [
    "FOOTER_BYTES",
    "FOOTER_MARK",
    "PART_MARK",
    "SEAL_BYTES",
    "check_footer",
    "footer_offset",
    "read_sealed",
    "seal_footer",
    "sealed",
]

PART_MARK = b"TLpart2\n"
"""Begins the seal of a part: the SHA-256 after it is of all other bytes of the file."""
FOOTER_MARK = b"TLfoot2\n"
"""Begins the seal of a store in one file: of all that follows it; pages have their own SHA-256."""
SEAL_BYTES = len(PART_MARK) + 32
FOOTER_BYTES = 8  # the length of what PyArrow wrote after the pages, and the magic bytes again
_MAGIC = b"PAR1"


def footer_offset(tail: bytes, size: int) -> int:
    """Return where the footer begins in a file of ``size`` bytes, of which ``tail`` are the last.

    Raises ``ValueError`` if there is no room for a footer as long as it says.
    """
    length = int.from_bytes(tail[-FOOTER_BYTES : -len(_MAGIC)], "little")
    offset = size - FOOTER_BYTES - length
    if tail[-len(_MAGIC) :] != _MAGIC or offset < len(_MAGIC):
        raise ValueError("it does not end as a Parquet file")
    return offset


def sealed(data: bytes) -> bytes:
    """Return a Parquet file with a seal before its footer."""
    offset = footer_offset(data, len(data))
    digest = new_sha256(data[:offset] + PART_MARK)
    digest.update(data[offset:])
    return data[:offset] + PART_MARK + digest.digest() + data[offset:]


def read_sealed(data: bytes) -> tuple[str, str | None]:
    """Return the SHA-256 of a part's file, and what is wrong with its seal, None if nothing is.

    Bytes are hashed once for both.
    """
    view = memoryview(data)
    try:
        offset = footer_offset(data, len(data))
        mark = offset - SEAL_BYTES
        if mark < len(_MAGIC) or data[mark : mark + len(PART_MARK)] != PART_MARK:
            raise ValueError("it has no seal before its footer")
    except ValueError as error:
        return new_sha256(data).hexdigest(), str(error)
    digest = mark + len(PART_MARK)
    whole = new_sha256(view[:digest])
    own = whole.copy()
    whole.update(view[digest:])
    own.update(view[offset:])
    found, said = own.hexdigest(), data[digest:offset].hex()
    fault = None if found == said else f"its sha256 is {found}, its seal says {said}"
    return whole.hexdigest(), fault


def seal_footer(file: BinaryIO) -> None:
    """Put a seal before the footer of a Parquet file that is open to read and write."""
    size = file.seek(0, io.SEEK_END)
    file.seek(size - FOOTER_BYTES)
    offset = footer_offset(file.read(FOOTER_BYTES), size)
    file.seek(offset)
    footer = file.read()
    file.seek(offset)
    file.write(FOOTER_MARK + new_sha256(FOOTER_MARK + footer).digest() + footer)


def check_footer(data: bytes) -> memoryview:
    """Return the footer behind its seal, with all that ends the file.

    Raises ``ValueError`` unless ``data`` begins with the seal that belongs to it.
    """
    mark, footer = data[: len(FOOTER_MARK)], memoryview(data)[SEAL_BYTES:]
    said = data[len(FOOTER_MARK) : SEAL_BYTES]
    if mark != FOOTER_MARK:
        raise ValueError("it has no seal before its footer: it is damaged, or no label store")
    found = new_sha256(mark)
    found.update(footer)
    if found.digest() != said:
        raise ValueError(f"sha256 of its footer is {found.hexdigest()}, its seal says {said.hex()}")
    return footer
