# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Stand-in for pip's installer, which ansible-test would fetch: ensurepip, then the asked-for packages by pip."""

from __future__ import annotations

import subprocess
import sys

# The installer's own options; pip itself does not know them.
requirements = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], stdout=subprocess.DEVNULL, check=True)
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *requirements]))
