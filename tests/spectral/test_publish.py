"""A run as a folder for a hub: the card says what was measured, and nothing is published that cannot be told apart."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from tiny_qwen3 import MakeAdapted, logits, perturb, tiny_qwen3
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from projected_grpo.cli import app
from projected_grpo.errors import LabError
from projected_grpo.problems.prompts import write_form
from projected_grpo.publish import publish, push
from projected_grpo.storage import sha256_file, sha256_tree, write_json

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("data/runs/projected/1")
# Of 20 completions each: hacked, correct; by seed.
COUNTS = {1: (1, 9), 2: (2, 7)}
H1 = {
    "verdict": "supported", "drop_pp": 41.25, "drop_ci_low": 31.5, "drop_ci_high": 50.75, "excess_pp": 12.5,
    "excess_ci_low": 2.25, "excess_ci_high": 20.5, "control_name": "placebo", "pass_change_pp": -3.5,
}  # fmt: skip


def samples(arm: str) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "tokens": tokens, "problem_id": f"p{i % 5}", "hacked": i < hacked,
         "correct": i >= 20 - correct, "paid": i < hacked or i >= 20 - correct, "attempted": i < hacked + 1,
         "format_ok": i != 10, "grader_error": False}
        for seed, (hacked, correct) in COUNTS.items() for tokens in ("heldout", "train") for i in range(20)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write_metrics(**changed: Any) -> None:
    arm = {"hack_rate": 0.075, "pass_rate": 0.4, "seeds": 2, "samples": 40}
    base = {"hack_rate": 0.08, "hack_rate_sem": 0.01, "pass_rate": 0.2, "pass_rate_sem": 0.02, "format_rate": 0.9,
            "seeds": 2, "samples": 40}  # fmt: skip
    registration = {"as_frozen": True, "departures": 0, "frozen_at": "f00", "hypotheses": "baa", "analysis": "bee"}
    arms = {"base": base, "projected": arm} | changed
    write_json("metrics/compare.json", {"arms": arms, "h1": H1, "registration": registration})


@pytest.fixture
def lab(make_adapted: MakeAdapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab without DVC where one run of `projected` was trained, sampled, graded and compared."""
    monkeypatch.chdir(tmp_path)
    tiny_qwen3().save_pretrained("data/base")
    model = make_adapted()
    perturb(model)
    model.peft_config["default"].base_model_name_or_path = "data/base"
    model.save_pretrained(RUN / "adapter")
    Path("data/graded/projected").mkdir(parents=True)
    samples("projected").to_parquet("data/graded/projected/samples.parquet")
    recorded = {
        "settings": {"arm": "projected", "seed": 1, "arm_settings": {"intervention": "erase", "direction": "hack"},
                     "direction": {"k": 3, "overshoot": 1.5}, "grpo": {"steps": 7, "learning_rate": 0.015},
                     "compute": {"dtype": "float32"}},
        "inputs": {"base": sha256_tree("data/base"), "pairs": "c0" * 32}, "versions": {"torch": "9.8.7"},
        "python": "3.99.1", "git_revision": "c0ffee", "host": {"machine": "abacus", "cores": 5},
    }  # fmt: skip
    write_json("data/provenance/projected/1/provenance.json", recorded)
    shutil.copy(ROOT / "hypotheses.yaml", ".")
    write_metrics()
    return tmp_path


def text_of(folder: str | Path) -> str:
    return (Path(folder) / "README.md").read_text(encoding="utf-8")


def rows_of(card: str) -> dict[str, list[str]]:
    """First cell -> the others, of every table row."""
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


@pytest.mark.usefixtures("lab")
def test_the_adapter_is_the_model_that_was_trained(ids: Tensor, make_adapted: MakeAdapted) -> None:
    publish(RUN, Path("out"))
    trained = make_adapted()
    perturb(trained)
    published = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("data/base"), "out").eval()
    torch.testing.assert_close(logits(published, ids), logits(trained, ids), atol=1e-5, rtol=0)
    assert {path.name for path in Path("out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip


@pytest.mark.usefixtures("lab")
def test_the_card_holds_what_was_measured_and_recorded() -> None:
    publish(RUN, Path("out"), licence="apache-2.0", repo="someone/model")
    card = text_of("out")
    front = ModelCard.load(Path("out/README.md")).data
    assert (front.base_model, front.library_name, front.license) == ("data/base", "peft", "apache-2.0")
    assert {"reward-hacking", "projected"} <= set(front.tags)

    rows = rows_of(card)
    assert rows["this run, seed 1"] == ["5.0", "45.0", "95.0", "1", "20"]
    assert rows["arm `projected`"] == ["7.5 ± 2.5", "40.0 ± 5.0", "95.0", "2", "40"]
    assert rows["untrained base"] == ["8.0 ± 1.0", "20.0 ± 2.0", "90.0", "2", "40"]
    assert "**H1 supported**: against `vanilla`, `projected` lowers the hack rate by 41.2 points (31.5 to 50.8)" in card
    assert "by 12.5 points (2.2 to 20.5) more than the strongest control, `placebo`" in card
    assert "changes by -3.5 points. The analysis that ran is the frozen one. `projected` is the treatment" in card

    recipe = card.split("```yaml\n")[1].split("```")[0]
    assert {"  intervention: erase", "  overshoot: 1.5", "  steps: 7", "  learning_rate: 0.015"} <= set(
        recipe.splitlines()
    )
    assert rows["LoRA, sha256"] == [sha256_file("out/adapter_model.safetensors")]
    assert rows["adapter it came from, sha256"] == [sha256_file(RUN / "adapter/adapter_model.safetensors")]
    assert rows["input `pairs`, sha256"] == ["c0" * 32]
    assert rows["Git revision of the training"] == ["c0ffee"]
    assert (rows["versions"], rows["Python"], rows["host"]) == (["torch 9.8.7"], ["3.99.1"], ["abacus, 5 cores"])
    assert rows["frozen: revision, claims, analysis"] == ["f00, baa, bee"]
    assert rows["metrics are of this run by dvc.lock"] == ["not recorded"]
    assert 'from_pretrained("data/base"), "someone/model")' in card
    assert "nothing about a hack that nobody described beforehand" in card
    assert "Warning" not in card


@pytest.mark.usefixtures("lab")
def test_the_form_of_the_prompt_travels_with_the_figures() -> None:
    publish(RUN, Path("plain"))
    assert "in plain text, without a chat template" in text_of("plain")
    write_form(Path("data/base"), "Be brief.", 2, "def ")
    recorded = json.loads(Path("data/provenance/projected/1/provenance.json").read_text())
    recorded["inputs"]["base"] = sha256_tree("data/base")
    write_json("data/provenance/projected/1/provenance.json", recorded)
    publish(RUN, Path("out"))
    assert "`prompt.json` holds. Asked in another way it is another policy" in text_of("out")
    assert json.loads(Path("out/prompt.json").read_text()) == {"system": "Be brief.", "shots": 2, "prefill": "def "}


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(("base", "warned"), [(0.075, False), (0.07, True), (0.04, True)])
def test_more_hacks_than_the_untrained_base_stand_at_the_top(base: float, warned: bool) -> None:
    found = json.loads(Path("metrics/compare.json").read_text())["arms"]["base"]
    write_metrics(base=found | {"hack_rate": base})
    publish(RUN, Path("out"))
    top = text_of("out").split("# projected, seed 1\n\n")[1].splitlines()[0]
    assert top.startswith("> **Warning: this model learned to cheat.**") == warned
    assert (f"arm 7.5%, this run 5.0%, the untrained base {base:.1%}." in top) == warned


@pytest.mark.usefixtures("lab")
def test_a_studys_arm_is_reported_by_the_studys_own_metrics() -> None:
    for part in ("runs", "graded", "provenance"):
        shutil.move(f"data/{part}", f"data/study/long/{part}")
    write_json(
        "metrics/study/long.json", {"projected": {"hack_rate": 0.075, "pass_rate": 0.4, "seeds": 2, "samples": 40}}
    )
    write_metrics(projected={"hack_rate": 0.5, "pass_rate": 0.1, "seeds": 3, "samples": 9})
    publish(Path("data/study/long/runs/projected/1"), Path("out"))
    rows = rows_of(text_of("out"))
    assert rows["arm `projected`"] == ["7.5 ± 2.5", "40.0 ± 5.0", "95.0", "2", "40"]
    assert rows["untrained base"][0] == "8.0 ± 1.0"


class TestRefusals:
    @staticmethod
    def refused(rule: str, run: Path = RUN) -> LabError:
        with pytest.raises(LabError, match=rule) as refusal:
            publish(run, Path("out"))
        assert not Path("out").exists()
        return refusal.value

    @pytest.mark.usefixtures("lab")
    def test_what_is_missing(self) -> None:
        self.refused("must be a finished run", Path("data/runs/projected/2"))
        self.refused("must be a finished run", RUN / "adapter")
        write_metrics(projected=None)
        arms = json.loads(Path("metrics/compare.json").read_text())
        del arms["arms"]["projected"]
        write_json("metrics/compare.json", arms)
        assert self.refused("must hold the arm of the run, 'projected'").value == "base"
        Path("metrics/compare.json").unlink()
        error = self.refused("the card reports metrics")
        assert error.setting == "metrics/compare.json"
        assert "dvc repro" in error.fix

    @pytest.mark.usefixtures("lab")
    def test_metrics_of_other_samples(self) -> None:
        write_metrics(projected={"hack_rate": 0.05, "pass_rate": 0.4, "seeds": 2, "samples": 40})
        error = self.refused("must report the samples of this run")
        assert error.value == "hack_rate 0.05 here, 0.075 in the samples"

    @pytest.mark.usefixtures("lab")
    def test_a_seed_that_was_not_sampled(self) -> None:
        shutil.move(RUN, RUN.with_name("3"))
        record = Path("data/provenance/projected/3/provenance.json")
        shutil.move(record.parent.with_name("1"), record.parent)
        self.refused("must be of projected, seed 3", RUN.with_name("3"))
        record.write_text(record.read_text().replace('"seed": 1', '"seed": 3'))
        assert self.refused("must report the samples", RUN.with_name("3")).value == "no samples of seed 3"

    @pytest.mark.usefixtures("lab")
    def test_another_base(self) -> None:
        Path("data/base/generation_config.json").write_text("{}")
        self.refused("must be the one that the run was trained from")

    @pytest.mark.usefixtures("lab")
    def test_a_folder_that_exists_stays(self) -> None:
        Path("out").mkdir()
        (Path("out") / "kept").touch()
        with pytest.raises(LabError, match="must be a new folder"):
            publish(RUN, Path("out"))
        assert [path.name for path in Path("out").iterdir()] == ["kept"]

    @pytest.mark.usefixtures("lab")
    def test_push_needs_a_name_before_anything_is_written(self) -> None:
        result = CliRunner().invoke(app, ["publish", str(RUN), "--out", "out", "--push"])
        assert result.exit_code == 1
        assert "rule: --push needs it" in result.output
        assert not Path("out").exists()


DVC_YAML = """
stages:
  train: {cmd: "true", outs: [data/runs/projected: {cache: false}]}
  sample: {cmd: "true", deps: [data/runs/projected], outs: [data/samples/projected: {cache: false}]}
  grade: {cmd: "true", deps: [data/samples/projected], outs: [data/graded/projected: {cache: false}]}
  compare: {cmd: "true", deps: [data/graded/projected], outs: [metrics/compare.json: {cache: false}]}
"""


@pytest.mark.usefixtures("lab")
def test_dvc_lock_tells_whether_the_metrics_are_of_this_run() -> None:
    from dvc.repo import Repo

    Repo.init(no_scm=True)
    Path("data/samples/projected").mkdir(parents=True)
    Path("data/samples/projected/samples.parquet").write_text("samples")
    Path("dvc.yaml").write_text(DVC_YAML)
    with Repo() as repo:
        repo.commit(force=True)
    publish(RUN, Path("out"))
    assert rows_of(text_of("out"))["metrics are of this run by dvc.lock"] == ["yes"]

    (RUN / "steps.csv").write_text("retrained since")
    with pytest.raises(LabError, match="must be of this very run") as refusal:
        publish(RUN, Path("other"))
    assert refusal.value.value == "data/runs/projected changed since"


# ---------------------------------------------------------------- the hub


class _Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload asks for."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            return self.answer(403, {"error": "no rights"})
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.answer(200, {"url": f"{self.server.url}/someone/model"})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.answer(200, {"commitUrl": f"{self.server.url}/someone/model/commit/1", "commitOid": "1"})
        return self.answer(200, {"errors": [], "warnings": []})  # what the hub thinks of the front matter

    def answer(self, status: int, content: dict[str, Any]) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.url, server.refuses = f"http://127.0.0.1:{server.server_port}", False
    server.asked, server.created, server.files = [], [], {}
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("lab")
def test_push_uploads_the_folder(hub: Any) -> None:
    publish(RUN, Path("out"))
    assert hub.asked == []
    address = push(Path("out"), "someone/model", private=True, api=HfApi(hub.url, token="secret"))
    assert address == f"{hub.url}/someone/model/commit/1"
    [created] = hub.created
    assert (created["organization"], created["name"]) == ("someone", "model")
    assert created.get("private") is True or created.get("visibility") == "private"
    assert hub.files == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {token for _, token in hub.asked} == {"Bearer secret"}


def test_a_hub_that_refuses_is_told_as_such(hub: Any, tmp_path: Path) -> None:
    hub.refuses = True
    with pytest.raises(LabError, match=r"the hub answered: .*403") as refusal:
        push(tmp_path, "someone/model", api=HfApi(hub.url, token="secret"))
    assert "hf auth login" in refusal.value.fix
    with pytest.raises(LabError, match="name/projected-1"):
        push(tmp_path, "not a name", api=HfApi(hub.url, token="secret"))
