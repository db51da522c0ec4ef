"""Which encoded images any decoder turns into the same pixels, seen from their headers."""

from __future__ import annotations

_SOF = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_PNG = b"\x89PNG\r\n\x1a\n"


def is_plain(data: bytes, size: int, channels: int) -> bool:
    """Whether an image needs only to be decoded: no resizing, no rule of ours for rare kinds.

    Args:
        data: The encoded file.
        size: Side of the images in pixels.
        channels: 1 (grey) or 3.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data, size, channels)
    if data.startswith(_PNG):
        return _png(data, size, channels)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return channels == 3 and _webp(data, size)
    return False


def _jpeg(data: bytes, size: int, channels: int) -> bool:
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _SOF:
            depth, components = data[at + 4], data[at + 9]
            kind = components == 1 if channels == 1 else components in (1, 3)
            return depth == 8 and kind and _sides(data[at + 5 : at + 9], "big") == (size, size)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _png(data: bytes, size: int, channels: int) -> bool:
    if len(data) < 33 or data[12:16] != b"IHDR":
        return False
    wide = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, colour = data[24], data[25]
    kind = (depth, colour) == (8, 0) if channels == 1 else depth <= 8
    # Turned or animated ones are left to Pillow, which turns or refuses them.
    return wide == (size, size) and kind and b"eXIf" not in data and b"acTL" not in data


def _webp(data: bytes, size: int) -> bool:
    kind = data[12:16]
    if kind == b"VP8 ":
        return data[23:26] == b"\x9d\x01\x2a" and _sides(data[26:30], "little", 0x3FFF) == (
            size,
            size,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return data[20:21] == b"\x2f" and ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1) == (
            size,
            size,
        )
    if kind == b"VP8X" and len(data) >= 30:
        exif_or_animated = data[20] & 0b1010
        wide = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        return not exif_or_animated and wide == (size, size)
    return False


def _sides(four: bytes, order: str, mask: int = 0xFFFF) -> tuple[int, int]:
    assert order in ("big", "little")
    one, other = (int.from_bytes(part, order) & mask for part in (four[:2], four[2:]))  # type: ignore[arg-type]
    return one, other
