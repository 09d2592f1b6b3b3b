"""`projected-grpo`: what a person does besides `dvc`. Heavy imports live inside the commands."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

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


@app.command()
def version() -> None:
    """Print the installed version."""
    typer.echo(installed_version("projected-grpo"))


@app.command()
def validate(
    params: Annotated[Path, typer.Option(help="The file to check.")] = Path("params.yaml"),
) -> None:
    """Check all of params.yaml and the files it names; report everything that is wrong at once."""
    from projected_grpo.settings.params import check

    settings = check(params)
    typer.echo(f"{params} is valid: scale {settings.scale}, method {settings.method}")
    for name, arm in settings.arms.items():
        acts = f"{arm.intervention} {arm.direction}" if arm.direction else arm.intervention
        typer.echo(f"  {name}: {acts}, {arm.grader} grader")


@app.command("draft-pairs")
def draft_pairs(
    out: Annotated[Path, typer.Argument(help="A new YAML file.")],
    seed: Annotated[int, typer.Option(help="Which tasks and wordings are drawn.")] = 0,
) -> None:
    """Draft 60 + 20 contrastive pairs of each contrast, for a person to read and edit; overwrites nothing."""
    from projected_grpo.problems import pairs
    from projected_grpo.storage import write_text

    if out.exists():
        raise LabError(setting="out", value=str(out), rule="must be a new file", fix="move it away first")
    drafted = pairs.draft_pairs(seed)
    write_text(out, pairs.dump_pairs(drafted))
    typer.echo(f"{out}: {len(drafted)} pairs; set scales.<scale>.extract.pairs to use them")


@app.command()
def columns(
    name: Annotated[str | None, typer.Argument(help="Show only columns whose name holds this text.")] = None,
) -> None:
    """Explain each column of steps.csv and rollouts.parquet, and map the original experiment's names."""
    from rich.console import Console
    from rich.table import Table

    from projected_grpo import columns as known

    console = Console()
    for title, group in (
        ("steps.csv: one row per optimizer step", known.STEPS),
        ("rollouts.parquet: one row per completion", known.ROLLOUTS),
    ):
        table = Table("column", "meaning", "healthy", title=title, title_justify="left", show_lines=False)
        for column in group:
            if name is None or name in column.name:
                table.add_row(column.name, column.meaning, column.healthy)
        if table.row_count:
            console.print(table)
    table = Table("original", "here", title="names of the original experiment", title_justify="left")
    for original, here in known.ORIGINAL:
        if name is None or name in original or name in here:
            table.add_row(original, here)
    if table.row_count:
        console.print(table)


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

    rows = read_rollouts(run_dir, hacked=hacked, step=step)
    console = Console()
    for row in rows[-last:]:
        console.print(panel(row, with_prompt=prompt))
    kind = "hacked completions" if hacked else "completions"
    console.print(f"{min(last, len(rows))} of {len(rows)} {kind} in {run_dir}", highlight=False)


if __name__ == "__main__":
    app()
