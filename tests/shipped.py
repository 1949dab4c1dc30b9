"""Look into a built sdist and wheel: `python tests/shipped.py DIST AGAIN`; AGAIN holds the sdist's wheel."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

SOURCE = Path(__file__).resolve().parents[1]
ROOMS = ("configs", "pipeline", "stages", "store")
IN_SDIST = {"PKG-INFO", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in", "pyproject.toml"}


def expected() -> set[str]:
    """Every file of the packages, as git knows them: code, templates, the demo's translator, configurations."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS]
    listed = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True).stdout.splitlines()
    return {f"devil_pipe/{name}" for name in listed if (SOURCE / name).is_file()}


def wheel_files(wheel: Path) -> dict[str, int]:
    """Path → CRC-32 of a wheel's files, without the list of hashes that a wheel writes of itself."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist() if not item.filename.endswith("/RECORD")}


def mistakes_of_wheel(names: set[str]) -> list[str]:
    """What is missing from a wheel, and what does not belong in it."""
    packed = {name for name in names if name.startswith("devil_pipe/")}
    beside = {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in names - packed}
    found = [f"wheel lacks {name}" for name in sorted(expected() - packed)]
    found += [f"wheel holds {name}, which git does not know" for name in sorted(packed - expected())]
    wanted = {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    return found + [f"wheel's dist-info lacks {name}" for name in sorted(wanted - beside)]


def mistakes_of_sdist(names: set[str]) -> list[str]:
    """The same of an sdist; `names` begin below its one folder."""
    wanted = {name.removeprefix("devil_pipe/") for name in expected()} | IN_SDIST
    stray = {name for name in names if name not in wanted and name != "setup.cfg" and ".egg-info/" not in name}
    return [f"sdist lacks {name}" for name in sorted(wanted - names)] + [
        f"sdist holds {name}" for name in sorted(stray)
    ]


def main(dist: Path, again: Path) -> int:
    """Exit code 1 with one line for each mistake."""
    (wheel,), (sdist,), (second,) = dist.glob("*.whl"), dist.glob("*.tar.gz"), again.glob("*.whl")
    first, other = wheel_files(wheel), wheel_files(second)
    with tarfile.open(sdist) as archive:
        inner = {item.name.partition("/")[2] for item in archive if item.isfile()}
    found = mistakes_of_wheel(set(first)) + mistakes_of_sdist(inner)
    names = sorted(first.keys() | other.keys())
    found += [f"{name} differs in the sdist's wheel" for name in names if first.get(name) != other.get(name)]
    if wheel.name != second.name:
        found.append(f"the sdist makes {second.name}, the source tree {wheel.name}")
    print(
        "\n".join(found)
        or f"{wheel.name}: {len(first)} files; {sdist.name}: {len(inner)} files; each is where it belongs"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
