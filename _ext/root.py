"""Where the repository is. Importing this puts it on the path: `collage` and `tools` are then found."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
