"""`python -m boute …` is `boute …`."""

import subprocess
import sys

from boute import binary

sys.exit(subprocess.run([binary(), *sys.argv[1:]]).returncode)
