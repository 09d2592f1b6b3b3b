"""Stage `prepare`: problems for training and evaluation, and the contrastive pairs of each contrast."""

import sys
from pathlib import Path

from projected_grpo.errors import LabError, exit_status
from projected_grpo.problems.families import make_problems
from projected_grpo.problems.pairs import CONTRASTS, Contrast, Pair, dump_pairs, read_pairs, select
from projected_grpo.problems.schema import write_problems
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.problems import ProblemsSettings
from projected_grpo.storage import atomic_directory, write_text


def chosen_pairs(extract: ExtractSettings) -> dict[Contrast, list[Pair]]:
    """Pairs of each contrast, extraction half first. Refuses a file that cannot be used before anything is written."""
    try:
        pairs = read_pairs(Path(extract.pairs))
    except ValueError as error:
        raise LabError(
            setting="extract.pairs", value=extract.pairs, rule=str(error), fix="mend the file, or restore it from Git"
        ) from None
    return {
        contrast: [pair for half in ("extract", "heldout") for pair in select(pairs, contrast, half, extract.bodies)]
        for contrast in CONTRASTS
    }


def main() -> None:
    params = read_params()
    problems = section(params, "problems", ProblemsSettings)
    pairs = chosen_pairs(section(params, "extract", ExtractSettings))
    with atomic_directory("data/problems") as folder:
        for split, count in (("train", problems.train), ("test", problems.test)):
            made = make_problems(count, problems.stages, split, problems.loopholes, problems.seed)
            write_problems(folder / f"{split}.jsonl", made)
            print(f"{split}: {len(made)} problems of {problems.stages} stages, e.g. {made[0].question}")
    for contrast, chosen in pairs.items():
        write_text(Path("data/pairs", f"{contrast}.yaml"), dump_pairs(chosen))
        print(f"{contrast}: {len(chosen)} pairs")


if __name__ == "__main__":
    sys.exit(exit_status(main))
