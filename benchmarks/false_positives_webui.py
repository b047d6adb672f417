"""How many ordinary prompts a profile of a WebUI's calibration flags by mistake, and how many duplicates it flags.

The WebUI runs already, with --api, MemGuard and the test bed's checkpoint (``memguard testbed export --format
checkpoint --vae kl``). Its API calibrates the shipped prompts and checks those of ``false_positives.py``, every prompt
with a seed of its own. The profile's files stay in models/memguard; their names are printed.

    python benchmarks/false_positives_webui.py http://127.0.0.1:7860 [--num-images 4] [--limit N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.false_positives import FIRST_SEED, groups, rows

SIZE = {"width": 128, "height": 128}


def post(url: str, body: dict) -> dict:
    """Return the answer of a call of the API."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=3600) as reply:
        return json.load(reply)


def run(url: str, images: int, limit: int | None) -> list[dict]:
    """Calibrate, check, print a table; return its rows."""
    size = {**SIZE, "batch_size": images}
    files = [each["file"] for each in post(f"{url}/memguard/v1/profiles", size)["profiles"]]
    print(*files, flush=True)
    table = []
    for name, prompts in groups().items():
        found = []
        for number, text in enumerate(prompts[:limit]):
            asked = {"prompt": text, "seed": FIRST_SEED + number, "profile": files[0], "explain": "never", **size}
            (report,) = post(f"{url}/memguard/v1/check", asked)["reports"]
            found += report["findings"]
        table += rows(name, images, found)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--num-images", type=int, default=1, help="of each prompt; the profile is over as many")
    parser.add_argument("--limit", type=int, help="prompts of each group")
    parser.add_argument("--out", type=Path, help="rows as JSON")
    args = parser.parse_args()
    table = run(args.url.rstrip("/"), args.num_images, args.limit)
    if args.out:
        args.out.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
