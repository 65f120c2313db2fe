"""Write six novels in the public domain as text files, out of the Debian package r-cran-janeaustenr, for sources of kind `stories`.

    python benchmarks/novels.py DIR [--deb FILE]

Without `--deb` the package is fetched with `apt-get download`. Its data file is R's: blocks of zlib, each a serialised vector of lines.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "r-cran-janeaustenr"
SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
_DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
_STRINGS = 0x10  # type of a vector of texts
_MISSING = 0xFFFFFFFF


def main() -> None:
    """Fetch, check, decode and write."""
    parser = argparse.ArgumentParser(description="Six novels as text files")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--deb", type=Path, help="the package, where it is there already")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        deb = asked.deb or fetched(Path(place))
        if (found := hashlib.sha256(deb.read_bytes()).hexdigest()) != SHA256:
            raise SystemExit(f"{deb} has sha256 {found}, expected {SHA256}")
        subprocess.run(["dpkg-deb", "-x", str(deb), place], check=True)
        data = (Path(place) / _DATA).read_bytes()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for lines in map(strings, blocks(data)):
        title = next(line for line in lines if line.strip()).strip()
        path = asked.folder / f"{title.lower().replace(' ', '_')}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {sum(len(line.split()) for line in lines):,} words")


def fetched(folder: Path) -> Path:
    """The package, by Debian's own client."""
    if shutil.which("apt-get") is None:
        raise SystemExit("there is no apt-get here; fetch the package elsewhere and give it with --deb")
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
    [deb] = folder.glob("*.deb")
    return deb


def blocks(data: bytes) -> Iterator[bytes]:
    """The blocks of a data file: 4 bytes of length, and zlib."""
    place = 0
    while place < len(data):
        block = zlib.decompressobj()
        yield block.decompress(data[place + 4 :])
        place = len(data) - len(block.unused_data)


def strings(block: bytes) -> list[str]:
    """The texts of a serialised vector (XDR, format 3): its header with the encoding, then each text with flags and length."""
    assert block[:2] == b"X\n", "a block is XDR"
    version, _, _, named = struct.unpack(">4I", block[2:18])
    assert version == 3, f"format 3 is read, this is {version}"
    place = 18 + named
    kind, count = struct.unpack(">2I", block[place : place + 8])
    assert kind & 0xFF == _STRINGS, "a block is a vector of texts"
    place, found = place + 8, []
    for _ in range(count):
        _, length = struct.unpack(">2I", block[place : place + 8])
        size = 0 if length == _MISSING else length
        found.append(block[place + 8 : place + 8 + size].decode("utf-8"))
        place += 8 + size
    return found


if __name__ == "__main__":
    main()
