"""``python -m gplvm_xp`` is the command ``gplvm-xp``."""

from __future__ import annotations

import sys

from gplvm_xp.cli import main

if __name__ == "__main__":
    sys.exit(main())
