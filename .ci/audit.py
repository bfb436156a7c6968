"""`make audit`: is a hole known in a locked package? Asks osv.dev, by pip-audit.

Exit code 0: none but those below; 1: some, which are listed; 3: the list of holes could not be
reached, and nothing was checked. OSV_URL names another place with OSV's API.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KNOWN = {  # without a version that mends them, and why they are no hole here
    "CVE-2025-69872": "diskcache, which DVC needs, unpickles what it keeps: that is kept in a "
    "folder of the user's alone (DVC_SITE_CACHE_DIR)",
}


def main() -> int:
    """Look every package of requirements.lock up."""
    words = ["pip-audit", "--requirement", str(ROOT / "requirements.lock"), "--require-hashes",
             "--disable-pip", "--format", "json", "--progress-spinner", "off",
             "--vulnerability-service", "osv"]  # fmt: skip
    words += [word for hole in KNOWN for word in ("--ignore-vuln", hole)]
    if url := os.environ.get("OSV_URL"):
        words += ["--osv-url", url]
    uv = os.environ.get("UV", str(ROOT / ".tools/bin/uv"))
    command = [uv, "tool", "run", "--python", sys.executable, "--from", "pip-audit==2.10.1", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        looked = json.loads(done.stdout)["dependencies"]
    except (OSError, ValueError) as error:
        said = "" if isinstance(error, OSError) else done.stderr.strip()
        why = said.rpartition("\n")[2] or error
        print(f"audit: the list of holes could not be reached: not checked ({why})")
        return 3
    holes = [
        (each["name"], each["version"], hole) for each in looked for hole in each.get("vulns", [])
    ]
    for name, version, hole in holes:
        mended = ", ".join(hole["fix_versions"]) or "no version"
        print(f"{name} {version}: {hole['id']} {' '.join(hole['aliases'])}: mended by {mended}")
    skipped = [each["name"] for each in looked if "skip_reason" in each]
    for name in skipped:
        print(f"{name}: not checked")
    for hole, why in KNOWN.items():
        print(f"known and left: {hole}: {why}")
    print(f"audit: {len(looked) - len(skipped)} packages looked up, {len(holes)} holes")
    return 1 if holes or skipped else 0


if __name__ == "__main__":
    sys.exit(main())
