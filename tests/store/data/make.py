"""Write the stores of schema 1.1 and 1.2 beside this file, which every later version has to read.

Never again once the version is released. `store-1.0` was written by the release that had that schema.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from stores import write_kept  # noqa: E402

if __name__ == "__main__":
    write_kept(HERE)
