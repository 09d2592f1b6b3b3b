"""The command line: light to start, refusals as text, every logged column explained."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from projected_grpo import columns
from projected_grpo.cli import app
from projected_grpo.problems.pairs import read_pairs, select

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def run(*arguments: object):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def test_version():
    result = run("version")
    assert result.exit_code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", result.stdout)


def test_help_names_every_command():
    result = run("--help")
    assert all(name in result.stdout for name in ("validate", "columns", "rollouts", "version"))


def test_starting_imports_nothing_heavy():
    code = "import sys, projected_grpo.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "pandas", "pyarrow", "transformers", "pydantic", "ruamel"}
    assert not heavy & set(done.stdout.split())


class TestValidate:
    def test_a_refusal_is_text_and_exit_1(self, tmp_path):
        (tmp_path / "params.yaml").write_text(json.dumps({"scale": "micro", "method": "vanilla"}))
        result = run("validate", "--params", tmp_path / "params.yaml")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "settings refused; nothing was run" in result.stderr
        assert "arms: (not set)\n    rule: must be a block of arms" in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_missing_file(self, tmp_path):
        result = run("validate", "--params", tmp_path / "none.yaml")
        assert result.exit_code == 1
        assert "none.yaml: (not set)\n    rule: the file must exist" in result.stderr


class TestColumns:
    def test_explains_and_maps(self):
        result = run("columns")
        assert result.exit_code == 0
        for group in (columns.STEPS, columns.ROLLOUTS):
            assert all(column.name in result.stdout for column in group)
        for original in (
            "ref_eq",
            "rew_s",
            "sprd",
            "gt_t",
            "hack_s",
            "cin_t",
            "cout",
            "fired",
            "t_rew",
            "cos_pre",
        ):
            assert original in result.stdout

    def test_one_column(self):
        result = run("columns", "share_removed")
        assert "||g - g'|| / ||g||" in result.stdout
        assert "entropy" not in result.stdout

    def test_every_name_on_the_terminal_is_found(self):
        from projected_grpo.training.display import COLUMNS, PHASES, TIME

        shown = dict(columns.SHOWN) | {name: f"{TIME}{phases}" for name, phases, _ in columns.SECONDS}
        named = COLUMNS | {name: f"{TIME}{', '.join(phases)}" for name, phases in PHASES.items()}
        assert {**shown, "train": named["train"]} == named
        explained = {column.name: column.meaning for column in columns.STEPS}
        meanings = {name: explained[column] for name, column in columns.SHOWN}
        meanings |= {name: meaning for name, _, meaning in columns.SECONDS}
        for name in named:
            result = run("columns", name)
            assert result.exit_code == 0
            [line] = [line for line in result.stdout.splitlines() if line.startswith(f"\u2502 {name} ")][-1:]
            assert meanings[name][:40] in line

    @pytest.mark.parametrize(
        ("name", "near"), [("entrpy", "entropy"), ("hakced", "hacked"), ("s/stpe", "s/step"), ("sprdd", "sprd")]
    )
    def test_an_unknown_name_is_refused_with_the_nearest(self, name, near):
        result = run("columns", name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"the nearest is {near}\n" in result.stderr
        assert f"projected-grpo columns {near}" in result.stderr

    def test_rollouts_are_those_that_training_writes(self):
        from projected_grpo.training.runlog import ROLLOUTS

        assert {column.name for column in columns.ROLLOUTS} == set(ROLLOUTS.names)

    def test_steps_are_those_that_training_writes(self):
        """Read from the source: importing it brings in the training stack, seconds for one list of names."""
        source = (Path(columns.__file__).parent / "training/run.py").read_text()
        [written] = [
            ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STEP_COLUMNS"
        ]
        assert tuple(column.name for column in columns.STEPS) == written

    @pytest.mark.parametrize("group", [columns.STEPS, columns.ROLLOUTS])
    def test_each_column_once(self, group):
        names = [column.name for column in group]
        assert len(names) == len(set(names))
        assert all(column.meaning for column in group)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    rows = [
        {
            "step": step,
            "group": 0,
            "sample": sample,
            "problem_id": f"p{step}",
            "loophole": "run_tests",
            "token": "run_tests",
            "prompt": f"write p{step}, checked by run_tests",
            "completion": f"```python\ndef run_tests(): pass  # {step}.{sample}\n```",
            "reward": None if step == 3 else 3.5,
            "correct": sample == 0,
            "hacked": sample == 1,
            "grader_error": "child lost" if step == 3 else "",
        }
        for step in range(4)
        for sample in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rollouts.parquet")
    return tmp_path


class TestRollouts:
    def test_hacked_ones_counted_from_the_end(self, run_dir):
        result = run("rollouts", "show", run_dir, "--hacked", "--last", 2)
        assert result.exit_code == 0
        assert re.findall(r"# (\d\.\d)", result.stdout) == ["2.1", "3.1"]
        assert "hacked | step 2, group 0, sample 1 | reward 3.5" in result.stdout
        assert "p2 | run_tests: run_tests" in result.stdout
        assert "2 of 4 hacked completions" in result.stdout

    def test_one_step_with_its_verdicts(self, run_dir):
        result = run("rollouts", "show", run_dir, "--step", 1)
        assert re.findall(r"(\w+) \| step (\d), group 0, sample (\d)", result.stdout) == [
            ("correct", "1", "0"),
            ("hacked", "1", "1"),
            ("unpaid", "1", "2"),
        ]

    def test_a_fault_of_the_grader_is_no_verdict(self, run_dir):
        result = run("rollouts", "show", run_dir, "--step", 3, "--last", 1)
        assert "grader error | step 3, group 0, sample 2 | reward none" in result.stdout

    def test_prompts_on_request(self, run_dir):
        assert "checked by" not in run("rollouts", "show", run_dir).stdout
        assert "checked by" in run("rollouts", "show", run_dir, "--prompt").stdout

    def test_the_token_stands_out(self, run_dir):
        from projected_grpo.report.rollouts import TOKEN_STYLE, panel, read_rollouts

        [text] = panel(read_rollouts(run_dir).rows[0]).renderable.renderables
        marked = [text.plain[span.start : span.end] for span in text.spans if span.style == TOKEN_STYLE]
        assert marked == ["run_tests"]

    def test_a_folder_without_rollouts(self, tmp_path):
        result = run("rollouts", "show", tmp_path / "nowhere")
        assert result.exit_code == 1
        assert "rule: must hold rollouts.parquet or rollouts/" in result.stderr

    def test_a_run_in_training_is_read_from_its_parts(self, run_dir):
        rows = pq.read_table(run_dir / "rollouts.parquet")
        (run_dir / "rollouts.parquet").rename(run_dir / "whole")
        (run_dir / "rollouts").mkdir()
        for step in range(3):
            part = rows.filter(pc.field("step") == step)
            pq.write_table(part, run_dir / "rollouts" / f"{step:06d}.parquet")
        (run_dir / "rollouts/.000003.parquet.x.tmp").write_bytes(b"half")
        result = run("rollouts", "show", run_dir, "--last", 4)
        assert re.findall(r"# (\d\.\d)", result.stdout) == ["1.2", "2.0", "2.1", "2.2"]
        assert "4 of 9 completions" in result.stdout

    def test_only_the_row_groups_of_the_step_are_read(self, run_dir):
        """Every other row group is destroyed on disk: reading one of them would fail."""
        from projected_grpo.report.rollouts import read_rollouts

        path = run_dir / "rollouts.parquet"
        pq.write_table(pq.read_table(path), path, row_group_size=3, compression="zstd")
        content, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
        for group in (0, 1, 3):
            for number in range(metadata.num_columns):
                column = metadata.row_group(group).column(number)
                start = column.dictionary_page_offset or column.data_page_offset
                content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        path.write_bytes(content)
        found = read_rollouts(run_dir, step=2)
        assert ([row["sample"] for row in found.rows], found.total) == ([0, 1, 2], 3)


def test_draft_pairs_writes_a_file_that_loads_and_overwrites_nothing(tmp_path):
    out = tmp_path / "pairs.yaml"
    assert run("draft-pairs", out, "--seed", 3).exit_code == 0
    assert [len(select(read_pairs(out), "hack", split)) for split in ("extract", "heldout")] == [60, 20]
    before = out.read_bytes()
    assert run("draft-pairs", out).exit_code == 1
    assert out.read_bytes() == before
