"""`projected-grpo`: what a person does besides `dvc`. Heavy imports live inside the commands."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from projected_grpo.errors import LabError


class _Commands(TyperGroup):
    """Prints a refusal of the lab as text and exits with 1; every command of the app gets this."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LabError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="A lab for one question: does projecting updates off a hack direction stop reward hacking?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
rollouts = typer.Typer(help="Look at what the model wrote.", no_args_is_help=True)
app.add_typer(rollouts, name="rollouts")
fetch = typer.Typer(help="Download what is not shipped.", no_args_is_help=True)
app.add_typer(fetch, name="fetch")
pool = typer.Typer(help="Cached completions for a teacher.", no_args_is_help=True)
app.add_typer(pool, name="pool")


@app.command()
def version() -> None:
    """Print the installed version."""
    typer.echo(installed_version("projected-grpo"))


@app.command()
def validate(
    params: Annotated[Path, typer.Option(help="The file to check.")] = Path("params.yaml"),
) -> None:
    """Check all of params.yaml and the files it names; report everything that is wrong at once."""
    from projected_grpo.interventions.registry import check_lab
    from projected_grpo.settings.params import check

    settings = check(params)
    check_lab(settings)
    typer.echo(f"{params} is valid: scale {settings.scale}, method {settings.method}")
    for name, arm in settings.arms.items():
        acts = f"{arm.intervention} {arm.direction}" if arm.direction else arm.intervention
        typer.echo(f"  {name}: {acts}, {arm.grader} grader")


@app.command()
def doctor(
    params: Annotated[Path, typer.Option(help="Settings to judge by, if the file exists.")] = Path("params.yaml"),
    scale: Annotated[str | None, typer.Option(help="Judge by this block of `scales`, down to its memory.")] = None,
) -> None:
    """Say what this host offers and whether a scale can run on it; exit with 1 if not."""
    from projected_grpo.doctor import examine

    diagnosis = examine(params, scale)
    typer.echo(str(diagnosis))
    if not diagnosis.go:
        raise typer.Exit(1)


@app.command("check-grader")
def check_grader(
    hostile: Annotated[Path, typer.Option(help="Folder with the hostile set.")] = Path("tests/data"),
    workers: Annotated[int | None, typer.Option(min=1, help="Executions side by side; default: all cores.")] = None,
    allow_weak: Annotated[bool, typer.Option("--allow-weak", help="Go on where the host isolates weakly.")] = False,
) -> None:
    """Try every exploit on every loophole, and the hostile set; exit with 1 if the grader errs once."""
    from projected_grpo.grading import gate

    if not gate.run(hostile, workers, allow_weak):
        raise typer.Exit(1)


@app.command()
def grade(
    problems: Annotated[Path, typer.Option(help="JSONL: id, func_name, setup_code, tests, canonical_solution.")],
    completions: Annotated[Path, typer.Option(help="JSONL: id, problem_id, response_text.")],
    out: Annotated[Path, typer.Option(help="Parquet to write, one row per completion, in their order.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Executions side by side; default: all cores.")] = None,
    cpu_seconds: Annotated[float, typer.Option(help="CPU time of one execution.")] = 8.0,
    memory_mb: Annotated[int, typer.Option(help="Address space of one execution, MiB.")] = 1024,
    allow_weak: Annotated[bool, typer.Option("--allow-weak", help="Go on where the host isolates weakly.")] = False,
) -> None:
    """Grade completions of your own: verdicts, loopholes that fire, detector flags."""
    from projected_grpo.grading import batch

    typer.echo(batch.run(problems, completions, out, workers, cpu_seconds, memory_mb, allow_weak))


@app.command()
def freeze() -> None:
    """Record what is claimed and how it is judged (hypotheses.yaml, the analysis code) in hypotheses.lock."""
    from projected_grpo.evaluation import registration

    lock = registration.freeze()
    typer.echo(f"{registration.LOCK}: frozen at {lock.revision[: registration.SHOWN]}; commit this file")


@app.command("draft-pairs")
def draft_pairs(
    out: Annotated[Path, typer.Argument(help="A new YAML file.")],
    seed: Annotated[int, typer.Option(help="Which tasks and wordings are drawn.")] = 0,
) -> None:
    """Draft 60 + 20 contrastive pairs of each contrast, for a person to read and edit; overwrites nothing."""
    from projected_grpo.problems import drafting, pairs
    from projected_grpo.storage import write_text

    if out.exists():
        raise LabError(setting="out", value=str(out), rule="must be a new file", fix="move it away first")
    drafted = drafting.draft_pairs(seed)
    write_text(out, pairs.dump_pairs(drafted))
    typer.echo(f"{out}: {len(drafted)} pairs; set scales.<scale>.extract.pairs to use them")


@app.command("export-lora")
def export_lora(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_DIR", help="Such as data/runs/vanilla/1/adapter.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    base: Annotated[str | None, typer.Option(help="The base model, if not the one that the adapter names.")] = None,
    energy: Annotated[float | None, typer.Option(help="Share of the change to keep per matrix; default: all.")] = None,
) -> None:
    """Write a trained adapter as a stock LoRA that plain PEFT and inference servers load."""
    from projected_grpo.export import export_lora as export

    done = export(adapter, out, base, energy)
    typer.echo(f"{out}: LoRA of rank {done.rank} on {done.modules} matrices")
    typer.echo(f"kept {done.directions} of {done.trained} trained directions; lost {done.lost:.2%} of the change of W")
    if done.lost:
        typer.echo(f"most in {done.worst[0]}: {done.worst[1]:.2%}")


@app.command()
def publish(
    run_dir: Annotated[Path, typer.Argument(help="A finished run, such as data/runs/projected/1.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    repo: Annotated[str | None, typer.Option(help="Model repository on the hub, such as name/projected-1.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload the folder to --repo; without it nothing is.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    base: Annotated[str | None, typer.Option(help="The base model, if not the one that the adapter names.")] = None,
    licence: Annotated[str, typer.Option("--license", help="The hub's name of the licence.")] = "mit",
) -> None:
    """Write a run's adapter as a stock LoRA, with a model card of what was measured; upload it only with --push."""
    if push and repo is None:
        raise LabError(setting="--repo", value=None, rule="--push needs it", fix="--repo NAME/MODEL")
    from projected_grpo import publish as publishing

    export, facts = publishing.publish(run_dir, out, base, licence, repo)
    typer.echo(f"{out}: {facts.arm}, seed {facts.seed}; LoRA of rank {export.rank} and model card README.md")
    if push and repo is not None:
        typer.echo(f"uploaded: {publishing.push(out, repo, private)}")
    else:
        typer.echo("nothing was uploaded")


@app.command()
def columns(
    name: Annotated[str | None, typer.Argument(help="Show only what has this text in its name.")] = None,
) -> None:
    """Explain each column of steps.csv and rollouts.parquet, what training shows, and the original experiment's
    names."""
    from rich.console import Console
    from rich.table import Table

    from projected_grpo import columns as known

    found = known.explained(name)
    if name is not None and not found:
        near = known.nearest(name)
        rule, fix = f"no known name holds it; the nearest is {near}", f"projected-grpo columns {near}"
        raise LabError(setting="column", value=name, rule=rule, fix=fix)
    console = Console()
    for each in found:
        table = Table(*each.header, title=each.title, title_justify="left", show_lines=False)
        for row in each.rows:
            table.add_row(*row)
        console.print(table)


@fetch.command("leetcode")
def fetch_leetcode(
    out: Annotated[Path, typer.Option(help="Where to put the file.")] = Path("data/shipped/leetcode.jsonl"),
    split: Annotated[str, typer.Option(help="Which of the benchmark's files: train or test.")] = "train",
) -> None:
    """Download the benchmark's LeetCode problems at a pinned revision and check their sha256."""
    from projected_grpo.problems.fetch import LEETCODE
    from projected_grpo.problems.fetch import fetch as download

    if split not in LEETCODE:
        raise LabError(setting="split", value=split, rule="must be train or test", fix="choose one of them")
    state = "downloaded" if download(LEETCODE[split], out) else "already there"
    typer.echo(f"{out}: {state}; use it with problems.source: leetcode, problems.path: {out}")


@app.command()
def status(
    study: Annotated[str | None, typer.Option(help="This study in place of the main pipeline.")] = None,
) -> None:
    """Tell what ran, what is stale and why, what `dvc repro` would do, and about how long it takes."""
    from rich.console import Console

    from projected_grpo import status as pipeline
    from projected_grpo.settings.loader import read_params

    shown = pipeline.MAIN if study is None else study
    others = [] if study else list(read_params().get("studies") or {})
    found = pipeline.read_status(wanted=[shown, *others])
    console = Console()
    console.print(pipeline.table(found[shown]))
    console.print(pipeline.summary(found[shown], shown), style="bold", highlight=False)
    for name in others:
        console.print(pipeline.study_line(name, found[name]), highlight=False)


@pool.command("build")
def pool_build(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Run folders, or the original's JSONL.")],
    target: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    model: Annotated[Path, typer.Option(help="Folder with the tokenizer.")] = Path("data/base"),
    problems: Annotated[Path, typer.Option(help="What the completions answer.")] = Path("data/problems/train.jsonl"),
    only: Annotated[Literal["hacked", "paid", "all"], typer.Option(help="Which verdicts.")] = "all",
    loophole: Annotated[list[str] | None, typer.Option(help="Only this loophole; may be repeated.")] = None,
    per_problem: Annotated[int | None, typer.Option(min=1, help="At most so many; the newest.")] = None,
    last_steps: Annotated[int | None, typer.Option(min=1, help="Only a run's last so many optimizer steps.")] = None,
) -> None:
    """Cache completions that are graded, for the `teacher` of an arm to mix into its groups."""
    from rich.console import Console

    from projected_grpo import pool_build

    built = pool_build.build(
        sources,
        target,
        model=model,
        problems=problems,
        only=only,
        loopholes=loophole or (),
        per_problem=per_problem,
        last_steps=last_steps,
    )
    Console().print(built.table())
    for note in (*built.notes(), f"{target}: {len(built.pool.rollouts)} completions"):
        typer.echo(note)


@rollouts.command("serve")
def rollouts_serve(
    data: Annotated[Path, typer.Argument(help="Folder with graded/ and runs/.")] = Path("data"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 0,
) -> None:
    """Open all completions in the browser, on this machine only; needs the extra `explore`."""
    from projected_grpo.report.serve import server

    with server(data, port) as running:
        typer.echo(f"http://127.0.0.1:{running.server_port}/  all rollouts under {data}; Ctrl-C ends it")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")


@rollouts.command("show")
def rollouts_show(
    run_dir: Annotated[Path, typer.Argument(help="Folder of one run, such as data/runs/vanilla/1.")],
    hacked: Annotated[bool, typer.Option("--hacked", help="Only completions paid and not correct.")] = False,
    step: Annotated[int | None, typer.Option(help="Only this optimizer step.")] = None,
    last: Annotated[int, typer.Option(min=1, help="How many, counted from the end of training.")] = 5,
    prompt: Annotated[bool, typer.Option("--prompt", help="Print the prompts as well.")] = False,
) -> None:
    """Print completions of a training run, with the disclosed token highlighted."""
    from rich.console import Console

    from projected_grpo.report.rollouts import panel, read_rollouts

    found = read_rollouts(run_dir, hacked=hacked, step=step, last=last)
    console = Console()
    for row in found.rows:
        console.print(panel(row, with_prompt=prompt))
    kind = "hacked completions" if hacked else "completions"
    console.print(f"{len(found.rows)} of {found.total} {kind} in {run_dir}", highlight=False)


if __name__ == "__main__":
    app()
