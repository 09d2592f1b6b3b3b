"""Stage `prepare`: problems for training and evaluation, and the contrastive pairs of each contrast."""

import argparse
import sys
from pathlib import Path

from projected_grpo.errors import LabError, exit_status
from projected_grpo.grading.canonical import solvable
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import Grader
from projected_grpo.problems.assignment import assigned
from projected_grpo.problems.families import make_problems
from projected_grpo.problems.leetcode import read_leetcode
from projected_grpo.problems.pairs import CONTRASTS, Contrast, Pair, dump_pairs, read_pairs, select
from projected_grpo.problems.schema import Problem, write_problems
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.problems import ProblemsSettings
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.studies import paths_of
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
        contrast: [
            pair
            for half in ("extract", "heldout")
            for pair in select(pairs, contrast, half, extract.bodies, extract.loopholes)
        ]
        for contrast in CONTRASTS
    }


def embedded(settings: ProblemsSettings) -> dict[str, list[Problem]]:
    """Problems made up from the seed; each has been solved while it was made."""
    return {
        split: make_problems(count, settings.stages, split, settings.loopholes, settings.seed)
        for split, count in (("train", settings.train), ("test", settings.test))
    }


def leetcode(settings: ProblemsSettings, limits: SandboxLimits) -> dict[str, list[Problem]]:
    """Problems of a file, without those that their own canonical solution does not solve within the limits."""
    counts = {"train": settings.train, "test": settings.test}
    test_share = settings.test / (settings.train + settings.test)
    splits = assigned(read_leetcode(str(settings.path)), test_share, settings.loopholes, settings.seed)
    with Sandbox(limits) as sandbox:
        grader = Grader(sandbox)
        for split, members in splits.items():
            accepted, refused = solvable(members, grader)
            for name, why in refused.items():
                print(f"{split}: problem {name} is refused: {why}")
            if not accepted:
                raise LabError(
                    setting=f"problems.{split}",
                    value=counts[split],
                    rule=f"none of the {len(members)} problems of {settings.path} in this split can be graded",
                    fix="use a longer file, another problems.seed, or wider limits in `sandbox`",
                )
            splits[split] = accepted[: counts[split]]
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study")
    study = parser.parse_args().study
    params = read_params(study=study)
    paths = paths_of(params, study)
    settings = section(params, "problems", ProblemsSettings)
    pairs = chosen_pairs(section(params, "extract", ExtractSettings))
    if settings.source == "leetcode":
        splits = leetcode(settings, SandboxLimits(**section(params, "sandbox", SandboxSettings).model_dump()))
    else:
        splits = embedded(settings)
    with atomic_directory(paths.problems) as folder:
        for split, problems in splits.items():
            write_problems(folder / f"{split}.jsonl", problems)
            print(f"{split}: {len(problems)} problems, e.g. {problems[0].question[:200]}")
    for contrast, chosen in pairs.items():
        write_text(paths.pairs / f"{contrast}.yaml", dump_pairs(chosen))
        print(f"{contrast}: {len(chosen)} pairs")


if __name__ == "__main__":
    sys.exit(exit_status(main))
