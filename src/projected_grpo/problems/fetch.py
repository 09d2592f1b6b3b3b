"""Downloads the benchmark's problems at a pinned revision, and takes them only with the known hash."""

from __future__ import annotations

import dataclasses
import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from projected_grpo.errors import LabError
from projected_grpo.storage import sha256_file, write_bytes

REVISION = "73695ff5533b566f7cc99b02bfeb9168936e740d"  # of ariahw/rl-rewardhacking, 2026-02-18
SITE = "https://raw.githubusercontent.com/ariahw/rl-rewardhacking"
TIMEOUT_SECONDS = 30.0
LARGEST = 200 << 20  # bytes: the files have some 20 MB


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of the benchmark."""

    path: str
    sha256: str


LEETCODE = {
    "train": Source(
        "results/data/leetcode_train_medhard_filtered.jsonl",
        "e29f296fe7389c90a5ae99656aecc170feea81e3aca90a9a638c6a0880068b5d",
    ),
    "test": Source(
        "results/data/leetcode_test_medhard.jsonl",
        "5bb4d91fcdbd3a3fc2c149570783edd41cf2f85a1f2293ec7c9ff5bae7185cbd",
    ),
}


def fetch(source: Source, out: str | Path, site: str = SITE) -> bool:
    """Have the file at `out`: False if it was there already, True after a download. It appears whole or not at all.

    Raises:
        LabError: no connection, another answer than the file, or another hash.
    """
    url = f"{site}/{REVISION}/{source.path}"
    if Path(out).is_file() and sha256_file(out) == source.sha256:
        return False
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            content = response.read(LARGEST + 1)
    except (OSError, urllib.error.URLError) as error:
        raise LabError(
            setting="fetch",
            value=source.path,
            rule=f"could not be downloaded: {getattr(error, 'reason', error)}",
            fix=f"on a computer with network, download {url} and copy it to {out}; its sha256 must be {source.sha256}. "
            "Nothing else needs the network: the embedded problems (source: embedded) need no file",
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise LabError(
            setting="fetch",
            value=found,
            rule=f"the sha256 of {url} must be {source.sha256}",
            fix="try again; if it stays so, something else answers at this address. Nothing was written",
        )
    write_bytes(out, content)
    return True
