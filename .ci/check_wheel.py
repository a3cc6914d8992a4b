"""Name, contents and size of the release wheel: python .ci/check_wheel.py FOLDER_OF_THE_WHEEL UNPACK_TO."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path, PurePosixPath

LIBRARIES = {"stratcore/_C.abi3.so", "stratcore/libstratcore.so"}
SUFFIXES = {".py", ".so", ".typed", ".jinja", ".safetensors", ".json", ".md"}
MEBIBYTE = 2**20
MAX_MEBIBYTES = 24  # machine code of four ops for two architectures, and PTX


def main() -> None:
    """Prints the contents; ends with the list of what is wrong, if anything is."""
    folder, target = map(Path, sys.argv[1:])
    (wheel,) = folder.glob("*.whl")
    size = wheel.stat().st_size / MEBIBYTE
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        archive.extractall(target)
    names = {entry.filename for entry in entries}
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    package = names - info
    libraries = {name for name in package if ".so" in PurePosixPath(name).name}

    print(f"{wheel.name}: {size:.2f} MiB, {len(names)} files")
    for entry in entries:
        if not entry.filename.endswith(".py"):
            print(f"{entry.file_size:>10,} {entry.filename}")
    faults = [
        ("-cp310-abi3-" not in wheel.name, f"tag is not cp310-abi3: {wheel.name}"),
        (libraries != LIBRARIES, f"libraries are {sorted(libraries)}, not {sorted(LIBRARIES)}"),
        (size > MAX_MEBIBYTES, f"{size:.1f} MiB, of {MAX_MEBIBYTES}"),
        (not any(name.endswith("/licenses/LICENSE") for name in info), "no licence"),
    ]
    faults += [
        (True, f"does not belong in the wheel: {name}")
        for name in sorted(package)
        if not name.startswith("stratcore/") or PurePosixPath(name).suffix not in SUFFIXES
    ]
    wrong = [text for fault, text in faults if fault]
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
