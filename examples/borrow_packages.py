"""Let the virtual environment of this Python find the packages of another one behind its own: ``borrow_packages.py .venv``."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path


def main(other: Path) -> None:
    """Write a file that adds the other environment's packages, editable ones included."""
    own = Path(sysconfig.get_path("purelib"))
    lent = other.resolve() / own.relative_to(sys.prefix)
    own.joinpath("borrowed.pth").write_text(f"import site; site.addsitedir({str(lent)!r})\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
