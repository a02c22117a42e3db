"""The verbs of the command line: one short function each; heavy imports happen inside them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from veilmark import __version__
from veilmark.run.errors import VeilmarkError
from veilmark.run.progress import console, figures_table, progress_bar, say

app = typer.Typer(
    name="veilmark",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Precise facial landmarks from faces too small to see.\n\n"
    "Start with `veilmark demo`, then `veilmark detect photo.jpg --draw`. "
    "`veilmark train` and `veilmark evaluate` make and score networks on your own data.",
)


class OutputFormat(StrEnum):
    """File formats of `veilmark detect`."""

    json = "json"
    csv = "csv"
    pts = "pts"
    coco = "coco"


class FinderName(StrEnum):
    """Face finders."""

    haar = "haar"
    yunet = "yunet"
    none = "none"


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Weights = Annotated[
    str, typer.Option(help="Packaged weights, a folder with config.json and model.safetensors, or hub:owner/name.")
]
Finder = Annotated[
    FinderName, typer.Option(help="haar: built in. yunet: needs --finder-weights. none: the picture is the face.")
]
FinderWeights = Annotated[Path | None, typer.Option(help="ONNX file of the YuNet finder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Data = Annotated[Path, typer.Option(help="Folder of the data set.", show_default=False)]
Cache = Annotated[Path, typer.Option(help="Where prepared faces are kept.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shared options."""


def _report_skipped(skipped: dict[str, str]) -> None:
    """Lists what could not be read, and ends with exit code 1 if there was any."""
    if not skipped:
        return
    say(f"[yellow]skipped {len(skipped)}:[/yellow]")
    for reason in skipped.values():
        say(f"  {escape(reason)}")
    raise typer.Exit(1)


def _sizes(text: str, largest: int) -> list[int]:
    from veilmark.faces.crop import REFERENCE_SIZE
    from veilmark.run.errors import ConfigError
    from veilmark.sht.layers import SMALLEST_FACE

    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sizes {text}: expected whole numbers with commas, e.g. 16,32,128") from None
    limit = max(largest, REFERENCE_SIZE)
    wrong = [size for size in sizes if not SMALLEST_FACE <= size <= limit]
    if wrong:
        raise ConfigError(f"--sizes {text}: {wrong[0]} is out of range; allowed: {SMALLEST_FACE} to {limit}")
    return sorted(set(sizes))


@app.command()
def detect(
    paths: Annotated[list[str], typer.Argument(help="Pictures, folders, patterns or videos.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("landmarks"),
    format: Annotated[OutputFormat, typer.Option(help="File format of the points.")] = OutputFormat.json,
    draw: Annotated[bool, typer.Option("--draw", help="Write overlays, too.")] = False,
    hallucinate: Annotated[bool, typer.Option("--hallucinate", help="Write hallucinated 128-px faces, too.")] = False,
    finder: Finder = FinderName.haar,
    finder_weights: FinderWeights = None,
    weights: Weights = "dhln-ytf68",
    device: Device = "auto",
    min_trust: Annotated[float, typer.Option(min=0, max=1, help="Leave out faces trusted less than this.")] = 0.5,
    debug: Debug = False,
) -> None:
    """Find landmarks in pictures and videos.

    PATHS are files, folders, patterns such as `photos/*.jpg`, and videos. Points are in pixels of the original
    picture, each with its expected error. Unreadable pictures are skipped and listed (exit code 1); exit code 2
    if no picture had a face.

    Example: `veilmark detect photos/ holiday.jpg --draw --out found`
    """
    from veilmark.sht.detection import detect_files
    from veilmark.sht.landmarker import Landmarker

    landmarker = Landmarker(weights, finder.value, finder_weights=finder_weights, device=device)
    summary = detect_files(
        landmarker, paths, out, format.value, draw=draw, hallucinate=hallucinate, min_trust=min_trust
    )
    say(
        f"{summary.faces} faces in {summary.pictures} pictures and frames; "
        f"{len(summary.without)} had none" + (f"; written to {escape(str(out))}" if summary.pictures else "")
    )
    for name in summary.without[:10]:
        say(f"  no face: {escape(name)}")
    if len(summary.without) > 10:
        say(f"  ... and {len(summary.without) - 10} more")
    _report_skipped(summary.skipped)
    if not summary.faces:
        raise typer.Exit(2)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe, e.g. dhln-ytf68.", show_default=False)],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/RECIPE by default.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: --set schedule.epochs=3. Repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")] = False,
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on each machine, one a GPU; each takes its share of every batch.")
    ] = 1,
    nodes: Annotated[
        int, typer.Option(min=1, help="Machines; more than one: start the command by torchrun or srun on all of them.")
    ] = 1,
    cache: Cache = Path(".cache/veilmark"),
    debug: Debug = False,
) -> None:
    """Train a network; Ctrl-C and `--resume` at any time.

    RECIPE is the name of a packaged recipe, such as dhln-ytf68. Writes the run folder: config.yaml,
    metrics.jsonl, checkpoints, weights, report.html.

    With several GPUs add `--devices 4`. `schedule.batch` is the whole batch, which all processes share evenly: the
    weights are those that one process would reach, and a run may be resumed with another number of them. Many
    machines: docs/scale.md.

    Example: `veilmark train dhln-ytf68 --data ytf68 --set schedule.epochs=3`
    """
    from contextlib import nullcontext

    from veilmark.report.html import write_training_report
    from veilmark.run.folder import RunFolder
    from veilmark.run.progress import speaking
    from veilmark.sht.parallel import Interrupted, ending_together
    from veilmark.sht.recipes import start_training

    fabric, start = start_training(recipe, set_ or [], devices, nodes)
    run = RunFolder(out or Path("runs") / recipe)
    first = fabric.is_global_zero
    with speaking(first), run.hold() if first else nullcontext(), ending_together(fabric):
        try:
            trained = start(data, run, cache, resume)
        except Interrupted:
            say(f"stopped; go on with --resume (run folder {escape(str(run.path))})")
            # Another code than 0 in the other processes would count as a crash, and end the first before it has saved.
            raise typer.Exit(130 if first else 0) from None
        if trained is None:
            return
        report = write_training_report(run.path)
    console.print(figures_table("last validation", trained.figures))
    say(f"weights: {escape(str(trained.weights))}; report: {escape(str(report))}")
    _report_skipped(trained.skipped)


@app.command()
def evaluate(
    data: Data,
    layout: Annotated[
        str, typer.Option(help="ytf68, 300w, wflw, cofw, aflw, celeba, helen or folder; see docs/datasets.md.")
    ] = "ytf68",
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "report",
    weights: Weights = "dhln-ytf68",
    predictions: Annotated[
        Path | None, typer.Option(help="Score these points instead of a network: CSV as in ytf68, or our JSON.")
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Face sizes in pixels, with commas: 16,24,32,48,64,128 by default; for wflw, cofw, aflw and 300w the "
            "network's own size, which gives the table that papers print.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/evaluate"),
    finder: Finder = FinderName.haar,
    finder_weights: FinderWeights = None,
    finder_rows: Annotated[bool, typer.Option(help="Rows whose box comes from the finder, too.")] = True,
    device: Device = "auto",
    cache: Cache = Path(".cache/veilmark"),
    debug: Debug = False,
) -> None:
    """Score a network, or anybody's points, under one stated protocol.

    Writes metrics.json, faces.csv, plots and report.html.

    Example: `veilmark evaluate --data ytf68 --split report --sizes 16,32,128`, or `--layout wflw --split test`
    """
    from veilmark.faces.datasets import load_faces
    from veilmark.faces.degrade import SIZES
    from veilmark.report.evaluation_plots import draw_evaluation
    from veilmark.report.html import write_evaluation_report
    from veilmark.sht.evaluation import evaluate as score
    from veilmark.sht.evaluation import evaluate_predictions
    from veilmark.sht.evaluation_tables import evaluation_tables
    from veilmark.sht.landmarker import Landmarker
    from veilmark.sht.protocol import prepare_faces, scored_faces

    landmarker = Landmarker(weights, finder.value, finder_weights=finder_weights, device=device)
    largest = landmarker.model.size
    chosen = [] if sizes is None else _sizes(sizes, largest)
    faces = load_faces(layout, data, split)
    if not chosen:
        # Papers print one table, of faces that are not small.
        chosen = [largest] if faces.protocol else sorted({size for size in SIZES if size < largest} | {largest})
    if predictions is not None:
        result = evaluate_predictions(faces, predictions, landmarker, chosen[0] if len(chosen) == 1 else 128)
    else:
        faces = faces.in_scheme(landmarker.model.scheme)
        prepared = prepare_faces(scored_faces(faces), cache, f"{layout}/{split}", largest)
        with progress_bar("steps") as bar:
            total = len(chosen) + (len(faces.labelled) if finder_rows else 0)
            task = bar.add_task("evaluating", total=total, note="")
            result = score(
                faces, prepared, landmarker, weights, chosen, finder_rows=finder_rows, advance=lambda: bar.advance(task)
            )
    result.write(out)
    draw_evaluation(out)
    report = write_evaluation_report(out)
    for table in evaluation_tables(result):
        console.print(table)
    for name, value in result.protocol.items():
        say(f"[dim]{name}: {escape(str(value))}[/dim]")
    say(f"metrics: {escape(str(out / 'metrics.json'))}; report: {escape(str(report))}")
    _report_skipped(result.skipped)


@app.command()
def transfer(
    a: Annotated[Path, typer.Argument(help="Picture whose face is painted.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Picture that gives the pose.", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG of the painted face.", show_default=False)],
    weights: Weights = "dhln-ytf68",
    transfer_weights: Annotated[
        str, typer.Option(help="Weights of the pose transfer network, as above.")
    ] = "fptn-ytf68",
    finder: Finder = FinderName.haar,
    finder_weights: FinderWeights = None,
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Write OUT-sheet.png, too: A, A hallucinated, the painting, B.")
    ] = False,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Paint the face of one picture in the pose of another.

    Takes the most trusted face of A and of B. A transferred face is a painting, and no evidence of what anybody
    looked like or did: do not pass it off as a photograph.

    Example: `veilmark transfer A.jpg B.jpg --out C.png --sheet`
    """
    from veilmark.sht.landmarker import Landmarker
    from veilmark.sht.pretrained import load_fptn
    from veilmark.sht.transfer import check_outputs, transfer_pictures, write_painted

    check_outputs(out, sheet, [a, b])
    landmarker = Landmarker(weights, finder.value, finder_weights=finder_weights, device=device)
    painted = transfer_pictures(landmarker, load_fptn(transfer_weights).to(landmarker.device), a, b)
    for path, trust in zip((a, b), painted.trust, strict=True):
        doubt = "; it may be no face" if trust < 0.5 else ""
        say(f"{escape(str(path))}: trust {trust:.2f}{doubt}")
    written = ", ".join(escape(str(path)) for path in write_painted(painted, out, sheet))
    say(f"written: {written} (a painting, no evidence of anybody's looks)")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    weights: Weights = "dhln-ytf68",
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Landmarks on real pictures that arrive with the dependencies.

    Example: `veilmark demo --out runs/demo`
    """
    from veilmark.report.html import write_demo_report
    from veilmark.run.folder import RunFolder
    from veilmark.sht.demo import run_demo

    run = RunFolder(out)
    with run.hold():
        summary = run_demo(run.path, weights, device)
        report = write_demo_report(run.path)
    table = Table("picture", "face px", "trust", "expected error %", "shift %", title="inter-ocular percent")
    for face in summary["faces"]:
        for row in face["rows"]:
            shift = "" if row["shift_percent"] is None else f"{row['shift_percent']:.1f}"
            table.add_row(
                face["name"], str(row["size"]), f"{row['trust']:.2f}", f"{row['expected_error_percent']:.1f}", shift
            )
    console.print(table)
    say("expected error: what the network claims; shift: distance from its points on the largest picture")
    say(f"report: {escape(str(report))}")


class TaskName(StrEnum):
    """Tasks of the first look of `veilmark federate`."""

    classify = "classify"
    landmarks = "landmarks"


class EngineName(StrEnum):
    """Engines of `veilmark federate`."""

    in_process = "in-process"
    flower = "flower"


@app.command()
def federate(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A packaged recipe, e.g. ppidsg-mnist; none: a first look (--task).", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data set; none for digits and rendered faces.", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value: --set method=none. Repeatable.")
    ] = None,
    task: Annotated[
        TaskName, typer.Option(help="Without RECIPE: digits to classify, or landmarks of synthetic faces.")
    ] = TaskName.classify,
    clients: Annotated[int | None, typer.Option(min=1, help="Owners of the pictures.", show_default=False)] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of the federation.", show_default=False)] = None,
    engine: Annotated[
        EngineName, typer.Option(help="in-process: one process, clients in threads. flower: in Flower's simulation.")
    ] = EngineName.in_process,
    secrets: Annotated[
        Path | None,
        typer.Option(help="Folder of the secrets, made for a new run; OUT.secrets by default.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/RECIPE-METHOD by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished round.")] = False,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    """Train one network among owners who keep their pictures; Ctrl-C and `--resume` at any time.

    RECIPE is the name of a packaged recipe. `--set method=` says what is shared: none (the whole network, in the
    clear), local (nothing), or a defence (gc, dpsgd...); ppidsg (a generator) where pictures are classified;
    keyed, hallucinator, ppidsg-landmarks (generators of faces) where landmarks are found, with landmarks-synthetic
    and landmarks-ytf68; docs/federation.md, docs/private-landmarks.md. Writes the run folder: config.yaml,
    metrics.jsonl, summary.json, the transcript of what the server saw, report.html.

    Without RECIPE: digits, 4 clients, the methods none, local and ppidsg side by side, in some minutes. With
    `--task landmarks`: synthetic faces, the methods none, local and keyed, and the audit of what travelled.

    Example: `veilmark federate ppidsg-mnist --data mnist --set method=none --rounds 5`
    """
    from veilmark.federation.first_look import first_look
    from veilmark.federation.recipes import federation_config, start_federation
    from veilmark.run.errors import ConfigError

    counts = {"clients": clients, "rounds": rounds}
    settings = [*(set_ or []), *(f"{name}={count}" for name, count in counts.items() if count is not None)]
    if recipe is None:
        if data is not None:
            named = "landmarks-ytf68" if task is TaskName.landmarks else "ppidsg-mnist"
            raise ConfigError(f"--data needs a recipe, e.g. veilmark federate {named} --data {data}")
        folder = out or Path("runs/federate")
        if task is TaskName.landmarks:
            folder = out or Path("runs/landmarks")
        runs = first_look(folder, settings, engine.value, resume, device, task.value, secrets)
        # What draws is loaded after clients have given back their memory.
        from veilmark.report.federation import compare_runs, comparison_table, write_comparison, write_federation_report

        for run in runs:
            write_federation_report(run)
        console.print(comparison_table(compare_runs(runs)))
        if task is TaskName.landmarks:
            _audit_all(runs, device)
        say(f"report: {escape(str(write_comparison(runs, folder)))}")
        return
    if task is TaskName.landmarks:
        raise ConfigError("--task is for the first look, without a recipe; a recipe says what is learned")
    config = federation_config(recipe, settings)
    run_path = out or Path("runs") / f"{recipe}-{config.method}"
    skipped = start_federation(
        config, data, run_path, engine=engine.value, secrets=secrets, resume=resume, device=device
    )
    from veilmark.report.federation import compare_runs, comparison_table, write_federation_report

    report = write_federation_report(run_path)
    console.print(comparison_table(compare_runs([run_path])))
    say(f"report: {escape(str(report))}; transcript: {escape(str(run_path / 'transcript'))}")
    _report_skipped(skipped)


def _audit_all(runs: list[Path], device: str) -> None:
    """Audits runs in which something travelled, and prints what was found."""
    from veilmark.audit.audits import audit_run
    from veilmark.report.audit import audit_table, read_audit, write_audit_report

    for run in runs:
        say(f"[bold]audit of {escape(run.name)}[/bold]")
        audit_run(run, None, run / "audit", device=device)
        if verdicts := read_audit(run / "audit"):
            console.print(audit_table(verdicts))
        write_audit_report(run / "audit")


@app.command("export-client")
def export_client(
    run: Annotated[Path, typer.Argument(help="Run folder of a federation of landmark detectors.", show_default=False)],
    client: Annotated[int, typer.Option(min=0, help="The client's number, from 0.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's data set; none for synthetic faces.", show_default=False)
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option(help="Folder of the run's secrets; beside the run by default.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The new weight folder; RUN/weights-CLIENT by default.", show_default=False)
    ] = None,
    debug: Debug = False,
) -> None:
    """Take a client's landmark detector out of a federation: a weight folder.

    It holds the global share and the client's own parts, and works in detect, evaluate and Landmarker like any other.
    The expected errors of such a detector are what its training claims: they are not calibrated on other people.

    Example: `veilmark export-client runs/landmarks-synthetic-keyed --client 0 --out weights`
    """
    from veilmark.federation.finished import export_client as export

    folder = export(run, client, out or run / f"weights-{client}", data, secrets=secrets)
    say(f"weights: {escape(str(folder))}; e.g. veilmark detect PHOTOS --weights {escape(str(folder))}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `veilmark federate`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("runs/compare"),
    debug: Debug = False,
) -> None:
    """Print and plot federations side by side.

    Says where they cannot be compared (another data set, partition, seed or number of clients), and by name and value
    which other settings of data and training differ.

    Example: `veilmark compare runs/federate/none runs/federate/local runs/federate/ppidsg`
    """
    from veilmark.report.federation import compare_runs, comparison_table, write_comparison

    comparison = compare_runs(runs)
    console.print(comparison_table(comparison))
    for warning in comparison.warnings:
        say(f"[yellow]{escape(warning)}[/yellow]")
    say(f"report: {escape(str(write_comparison(runs, out)))}")


@app.command()
def audit(
    run: Annotated[
        Path | None,
        typer.Argument(help="Run folder of `veilmark federate`; none: the newest below runs/.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the run's data set; none for the bundled digits.", show_default=False)
    ] = None,
    secrets: Annotated[
        Path | None, typer.Option(help="Folder of the run's secrets, for scoring.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the audit; RUN/audit by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that attacks draw.")] = 0,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which no further attack begins.", show_default=False)
    ] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Attack what the server of a federation saw, and say what leaked.

    Attacks get the transcript and public test pictures; the clients' pictures are read for scoring only. Each attack
    is shown where it must succeed and on noise. Writes audit.json and report.html; one that was stopped goes on.

    Without RUN: the newest run below runs/, or plain averaging on digits, which is played then.

    Example: `veilmark audit runs/ppidsg-mnist-none --data mnist`
    """
    from veilmark.audit.audits import audit_run, newest_run
    from veilmark.report.audit import audit_table, read_audit, write_audit_report
    from veilmark.run.devices import choose_device

    # Before a first look is played.
    computes = str(choose_device(device))
    if run is None:
        run = newest_run(Path("runs"))
        if run is None:
            from veilmark.federation.first_look import first_look

            say("no run below runs/: playing plain averaging on digits; veilmark federate plays more methods")
            # One method, and fewer steps, which the audit's own federations take too: some minutes, where all methods
            # would be a quarter of an hour.
            (run,) = first_look(Path("runs/federate"), ["training.local_steps=6"], methods=["none"])
        say(f"run: {escape(str(run))}")
    folder = out or run / "audit"
    summary = audit_run(run, data, folder, secrets=secrets, seed=seed, budget=budget, device=computes)
    console.print(audit_table(read_audit(folder)))
    for name in summary["skipped"]:
        say(f"[yellow]not begun, the budget was spent:[/yellow] {escape(name)}")
    for name, why in summary["obstacles"].items():
        say(f"[dim]{escape(name)} does not apply: {escape(why)}[/dim]")
    say(f"report: {escape(str(write_audit_report(folder)))}; every figure: {escape(str(folder / 'audit.json'))}")


KeyFile = Annotated[Path, typer.Option("--key", help="File of the secret; made by keygen.", show_default=False)]
Pictures = Annotated[list[str], typer.Argument(help="Pictures, folders or patterns.", show_default=False)]


@app.command()
def keygen(
    keyfile: Annotated[Path, typer.Argument(help="The new file; never one that exists.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Make a secret for `veilmark scramble`: 256 bits in a file that only you may read.

    Whoever has the file can unscramble; keep a copy, for without it you cannot. It is never printed.

    Example: `veilmark keygen owner.key`
    """
    from veilmark.ppidsg.secret import Secret

    secret = Secret.generate()
    secret.save(keyfile)
    say(f"{escape(str(keyfile))}: a new secret, check {secret.check()} (stands in every picture scrambled with it)")


@app.command()
def scramble(
    images: Pictures,
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="A .png for one picture, a folder for more.")] = Path("scrambled"),
    block: Annotated[int, typer.Option(help="Side of a block in pixels: 2, 4, 8 or 16.")] = 4,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out a step: rotate, negate, flip, colour or permute. Repeatable.", show_default=False),
    ] = None,
    per_image: Annotated[
        bool, typer.Option("--per-image", help="Scramble every picture differently (scope `image`).")
    ] = False,
    debug: Debug = False,
) -> None:
    """Scramble pictures, block by block, so that the secret gives back every pixel.

    It hides the look of a picture. It is **not** encryption: one textured picture beside its scrambled self opens all
    others of its shape. Block, steps and true size travel in the PNG.

    Example: `veilmark scramble photo.png --key owner.key --out hidden.png`
    """
    from veilmark.ppidsg.cipher import STEPS
    from veilmark.ppidsg.pictures import scramble_files
    from veilmark.ppidsg.secret import Secret
    from veilmark.run.errors import ConfigError

    for step in without or []:
        if step not in STEPS:
            raise ConfigError(f"--without {step}: no step of the cipher; allowed: {', '.join(STEPS)}")
    steps = [step for step in STEPS if step not in (without or [])]
    written = scramble_files(images, Secret.load(key), out, block=block, steps=steps, per_image=per_image)
    say(f"{len(written.files)} pictures scrambled" + (f"; written to {escape(str(out))}" if written.files else ""))
    _report_skipped(written.skipped)


@app.command()
def unscramble(
    images: Pictures,
    key: KeyFile,
    out: Annotated[Path, typer.Option(help="A .png for one picture, a folder for more.")] = Path("unscrambled"),
    debug: Debug = False,
) -> None:
    """Give back what `veilmark scramble` wrote, pixel by pixel.

    Example: `veilmark unscramble hidden.png --key owner.key --out photo-again.png`
    """
    from veilmark.ppidsg.pictures import unscramble_files
    from veilmark.ppidsg.secret import Secret

    written = unscramble_files(images, Secret.load(key), out)
    say(f"{len(written.files)} pictures unscrambled" + (f"; written to {escape(str(out))}" if written.files else ""))
    _report_skipped(written.skipped)


def main() -> None:
    """The console script: an error that a user is meant to read comes without a traceback."""
    try:
        app()
    except VeilmarkError as error:
        if "--debug" in sys.argv:
            raise
        say(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
