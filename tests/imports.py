"""Import every module of the installed package: what a missing or too old dependency breaks first."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback

ROOMS = ("devil_pipe.store", "devil_pipe.stages", "devil_pipe.pipeline")


def main() -> int:
    """Exit code 1, with every traceback, where a module cannot be imported."""
    names = [item.name for room in ROOMS for item in _modules(room)]
    broken = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            broken.append(name)
            traceback.print_exc()
    print(f"{len(names)} modules, {len(broken)} cannot be imported: {', '.join(broken) or '-'}")
    return 1 if broken or not names else 0


def _modules(room: str) -> list[pkgutil.ModuleInfo]:
    return list(pkgutil.walk_packages(importlib.import_module(room).__path__, f"{room}."))


if __name__ == "__main__":
    sys.exit(main())
