"""Stage `validate`: all of params.yaml and the files it names, and the claims to be judged, upstream of everything.

Writes data/validated.json, the same for all valid parameters, so that a changed setting reruns only what uses
it; and the hashes of the inputs whose place is a setting (base checkpoint, contrastive pairs, a given
direction), so that their content counts, not only their name. On a refusal nothing is written.
"""

import sys
from pathlib import Path

from projected_grpo.errors import LabError
from projected_grpo.interventions import registry
from projected_grpo.settings.hypotheses import check_arms, read_hypotheses
from projected_grpo.settings.params import check
from projected_grpo.storage import sha256_tree, write_json


def main() -> int:
    try:
        settings = check()
        registry.check_lab(settings)
        check_arms(read_hypotheses(), settings.arms)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    base, extract = settings.active.base, settings.active.extract
    inputs = {
        "base": base.path if base.source == "shipped" and not base.rebuild else None,
        "direction": extract.direction_file,
        "pairs": extract.pairs,
        "problems": settings.active.problems.path,
    }
    for name, path in inputs.items():
        content = sha256_tree(path) if path is not None else None
        write_json(Path("data/inputs", f"{name}.json"), {"sha256": content})
    write_json("data/validated.json", {"valid": True})
    print(f"parameters are valid: scale {settings.scale}, method {settings.method}, {len(settings.arms)} arms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
