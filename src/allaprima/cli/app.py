"""The verbs and their options; each verb's work is in its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from allaprima.cli.card_verbs import card_app, cards
from allaprima.cli.study_verbs import study_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="A few-step student paints first, an oracle looks, and a teacher retouches only what falls short.",
)

# Options that several verbs have.
Card = Annotated[str, typer.Option(help="Bundled card by name, or path of a card.yaml.")]
StudentOnly = Annotated[bool, typer.Option("--student-only", help="Accept every draft.")]
TeacherOnly = Annotated[bool, typer.Option("--teacher-only", help="No drafts: the teacher paints everything.")]
Strategy = Annotated[str | None, typer.Option(help="What the teacher does with a poor draft: refine or regenerate.")]
SigmaIs = Annotated[str | None, typer.Option(help="'variance' (the paper's formula) or 'strength' (diffusers).")]
Solver = Annotated[str | None, typer.Option(help="The teacher's solver: ddim, dpm_solver, ...")]
RayAddress = Annotated[
    str | None, typer.Option(help="Of a Ray cluster that runs, or auto; default: one is started here, for this run.")
]
StudentSteps = Annotated[int | None, typer.Option(help="Student steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale of both models.")]
NegativePrompt = Annotated[str, typer.Option(help="What not to paint.")]
Seed = Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.")]
ImagesPerPrompt = Annotated[int, typer.Option(help="Pictures a prompt.")]
BatchSize = Annotated[int | None, typer.Option(help="Pictures a network call; constant, padded.")]
Nearest = Annotated[bool, typer.Option(help="Move unknown words to the nearest concept the card knows.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Threshold = Annotated[
    float | None, typer.Option(help="Accept drafts that score at least this; default: the card's calibrated one.")
]
Sigma = Annotated[float | None, typer.Option(help="Refining: how much of a draft is repainted.")]
LastTime = Annotated[float | None, typer.Option(help="Where the teacher's last step is evaluated.")]
Backend = Annotated[
    str | None, typer.Option(help="What runs the networks: eager (torch; default), openvino or onnxruntime, for CPUs.")
]
Device = Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:1, or auto.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), bfloat16, float16, or auto.")]
Steps = Annotated[int | None, typer.Option(help="Teacher steps.")]

UNUSED_OPTIONS = ("prompts_file", "budget", "calibration", "guidance_interval", "guidance_outside")
"""Options of `generate` that tasks with a picture beside the prompt don't have."""


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Text to image within a budget."""
    if version:
        from allaprima._version import __version__

        typer.echo(f"allaprima {__version__}")
        raise typer.Exit


@app.command(
    epilog='Example: allaprima generate "red apple, noto" "cat face, fluent 3d" --budget 15 --out out/first',
)
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; quote each.")] = None,
    prompts_file: Annotated[str | None, typer.Option(help="Text, CSV or JSONL with prompts; '-' reads stdin.")] = None,
    demo: Annotated[bool, typer.Option(help="Paint the card's own 24 demonstration prompts.")] = False,
    card: Card = "emoji",
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, results.jsonl, sheet.png.")] = Path("out"),
    student_only: StudentOnly = False,
    teacher_only: TeacherOnly = False,
    strategy: Strategy = None,
    budget: Annotated[
        float | None, typer.Option(help="Mean cost a picture, in the unit (usually steps) of the card's calibration.")
    ] = None,
    steer: Annotated[
        bool, typer.Option("--steer", help="Correct the threshold as pictures are painted: the mean cost meets the budget.")
    ] = False,
    threshold: Annotated[float | None, typer.Option(help="Accept drafts that score at least this.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Artifact of calibrate, with its settings, in place of the card's own.")
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="Rollback depth in (0, 1): how much of a draft is repainted.")] = None,
    sigma_is: SigmaIs = None,
    solver: Solver = None,
    steps: Annotated[int | None, typer.Option(help="Teacher steps; N means N network steps, whatever sigma.")] = None,
    last_time: Annotated[
        float | None, typer.Option(help="Where the teacher's last step is evaluated; default: the card's for its solver.")
    ] = None,
    student_steps: StudentSteps = None,
    guidance: Guidance = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Times LOW HIGH between which the teacher's guidance is full; 0 1000 is always."),
    ] = None,
    guidance_outside: Annotated[
        float | None, typer.Option(help="The teacher's guidance scale outside that interval; 1 is none, and half the work.")
    ] = None,
    negative_prompt: NegativePrompt = "",
    seed: Seed = 0,
    images_per_prompt: ImagesPerPrompt = 1,
    batch_size: BatchSize = None,
    nearest: Nearest = True,
    resume: Resume = False,
    engine: Annotated[
        str,
        typer.Option(help="process (here), or ray: workers of a Ray cluster, for very many prompts (docs/serving.md)."),
    ] = "process",
    ray_address: RayAddress = None,
    workers: Annotated[int, typer.Option(help="With --engine ray: how many load the models and paint.")] = 2,
    backend: Backend = None,
    device: Device = None,
    teacher_device: Annotated[
        str | None, typer.Option(help="The teacher's network, when it is to be elsewhere; default: on --device.")
    ] = None,
    dtype: Dtype = None,
    lazy_teacher: Annotated[
        bool, typer.Option("--lazy-teacher", help="Read the teacher's network when the first draft falls short.")
    ] = False,
    offload: Annotated[
        str | None, typer.Option(help="With a GPU: model (one network at a time is there) or sequential (one layer).")
    ] = None,
) -> None:
    """Paint prompts: student, oracle, and teacher where it is needed."""
    from allaprima.cli.generate import GenerateOptions, generate_command
    from allaprima.models.placement.device_config import DeviceConfig

    given = {k: v for k, v in locals().items() if k in GenerateOptions.__dataclass_fields__}
    device_config = DeviceConfig.of(
        backend=backend, device=device, teacher_device=teacher_device, dtype=dtype, lazy_teacher=lazy_teacher,
        offload=offload,
    )  # fmt: skip
    options = GenerateOptions(**given, device_config=device_config)
    if engine == "ray":
        from allaprima.cli.generate_ray import generate_on_ray

        generate_on_ray(options)
    elif engine == "process":
        generate_command(options)
    else:
        from allaprima.core.errors import SettingError

        raise SettingError(f"engine={engine!r} is not known: process (here), or ray (workers of a Ray cluster).")


@app.command(
    epilog='Example: allaprima edit apple.png "red apple, fluent 3d" --strengths 0.4,0.6,0.8 --out out/edited',
)
def edit(
    picture: Annotated[Path | None, typer.Argument(help="The picture to edit.")] = None,
    prompts: Annotated[list[str] | None, typer.Argument(help="What it should become; quote each.")] = None,
    edits_file: Annotated[
        Path | None,
        typer.Option(help="Instead: CSV or JSONL of image, prompt, and perhaps strength, mask, seed, negative_prompt."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Only white places are painted anew; the rest is kept to the pixel.")
    ] = None,
    strengths: Annotated[
        str, typer.Option(help="How much may change, in (0, 1), several with commas; default 0.8, with a mask 1.")
    ] = "",
    fit: Annotated[bool, typer.Option("--fit", help="Resize and cut pictures and masks to what the card paints.")] = False,
    card: Card = "emoji",
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, sources/, results.jsonl, sheet.png.")] = Path(
        "out"
    ),
    student_only: StudentOnly = False,
    teacher_only: Annotated[bool, typer.Option("--teacher-only", help="No drafts: the teacher edits everything.")] = False,
    strategy: Annotated[
        str | None, typer.Option(help="What the teacher does with a poor draft: regenerate (edit anew; default) or refine.")
    ] = None,
    threshold: Threshold = None,
    sigma: Sigma = None,
    sigma_is: SigmaIs = None,
    solver: Solver = None,
    steps: Annotated[int | None, typer.Option(help="Teacher steps of a whole picture; an edit takes its share.")] = None,
    last_time: LastTime = None,
    student_steps: Annotated[int | None, typer.Option(help="Student steps; an edit takes them all.")] = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = "",
    seed: Seed = 0,
    images_per_prompt: Annotated[int, typer.Option(help="Pictures a prompt and strength.")] = 1,
    batch_size: BatchSize = None,
    nearest: Nearest = True,
    resume: Resume = False,
) -> None:
    """Edit pictures: the student first, and the teacher where its draft falls short (SDEdit, inpainting)."""
    from allaprima.cli.edit import EditOptions, edit_command
    from allaprima.core.errors import SettingError

    try:
        several = tuple(float(x) for x in strengths.split(",")) if strengths else ()
    except ValueError as e:
        raise SettingError(f"strengths={strengths!r} are not numbers with commas between: 0.4,0.6,0.8 for example.") from e
    given: dict[str, Any] = {k: v for k, v in locals().items() if k in EditOptions.__dataclass_fields__}
    given |= {**dict.fromkeys(UNUSED_OPTIONS), "demo": False, "steer": False, "strengths": several}
    edit_command(EditOptions(**given))


@app.command(
    epilog='Example: allaprima control sketch.png "owl, fluent 3d" --net out/edges --map canny --out out/controlled',
)
def control(
    picture: Annotated[Path | None, typer.Argument(help="Where things are: a picture, or the map itself.")] = None,
    prompts: Annotated[list[str] | None, typer.Argument(help="What to paint; quote each.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Map hole: white where the picture is missing.")] = None,
    controls_file: Annotated[
        Path | None, typer.Option(help="Instead: CSV or JSONL of image, prompt, and perhaps mask, seed, negative_prompt.")
    ] = None,
    net: Annotated[
        list[str] | None,
        typer.Option(help="ControlNet: one of the card's by name, or a folder in diffusers' format; may be repeated."),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="What each net reads: canny, colours, low-resolution, hole (with --mask); given: the picture itself.",
        ),
    ] = None,
    scale: Annotated[list[float] | None, typer.Option(help="How much each net is heeded; default 1.")] = None,
    condition_weight: Annotated[
        float, typer.Option(help="Of how well a draft heeds its map (0..1), added to the oracle's score; with --threshold.")
    ] = 0.0,
    fit: Annotated[bool, typer.Option("--fit", help="Resize and cut pictures to what the card paints.")] = False,
    card: Card = "emoji",
    out: Annotated[Path, typer.Option(help="Run folder: images/, drafts/, sources/, sheet.png.")] = Path("out"),
    student_only: StudentOnly = False,
    teacher_only: TeacherOnly = False,
    strategy: Strategy = None,
    threshold: Threshold = None,
    sigma: Sigma = None,
    sigma_is: SigmaIs = None,
    solver: Solver = None,
    steps: Steps = None,
    last_time: LastTime = None,
    student_steps: StudentSteps = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = "",
    seed: Seed = 0,
    images_per_prompt: ImagesPerPrompt = 1,
    batch_size: BatchSize = None,
    nearest: Nearest = True,
    resume: Resume = False,
) -> None:
    """Paint what a prompt says where a picture says: ControlNets on student and teacher."""
    from allaprima.cli.control import ControlOptions, control_command

    given: dict[str, Any] = {k: v for k, v in locals().items() if k in ControlOptions.__dataclass_fields__}
    given |= {**dict.fromkeys(UNUSED_OPTIONS), "demo": False, "steer": False}
    given |= {"nets": tuple(net or ()), "maps": tuple(map_ or ()), "scales": tuple(scale or ())}
    control_command(ControlOptions(**given))


@app.command(epilog="Example: allaprima show out/first/images/00000.png --repeat")
def show(
    picture: Annotated[Path, typer.Argument(help="A PNG painted by allaprima.")],
    repeat: Annotated[bool, typer.Option("--repeat", help="Paint it again and compare, byte for byte.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write the repeated picture.")] = None,
    card: Annotated[str | None, typer.Option(help="Where its card is, if the name in the picture isn't enough.")] = None,
    source: Annotated[
        list[Path] | None, typer.Option(help="With --repeat: picture or mask that was edited; may be given again.")
    ] = None,
) -> None:
    """Print what made a picture; with --repeat, make it again."""
    from allaprima.cli.show import show_command

    show_command(picture, repeat, out, card, source or [])


@app.command(epilog="Example: allaprima calibrate --budget 15 --table")
def calibrate(
    budget: Annotated[float | None, typer.Option(help="Mean cost a picture, in --unit; default 15 steps.")] = None,
    target: Annotated[
        float | None, typer.Option(help="Instead of a budget: the mean --metric that finished pictures must reach.")
    ] = None,
    metric: Annotated[str, typer.Option(help="What --search and --target look at: oracle, or judge for emoji.")] = "oracle",
    search: Annotated[
        bool,
        typer.Option("--search", help="Tune student steps, strategy, sigma, teacher steps and solver for the budget too."),
    ] = False,
    unit: Annotated[str, typer.Option(help="steps, evaluations (a guided step is 2), seconds or money.")] = "steps",
    price_per_hour: Annotated[float | None, typer.Option(help="What this machine costs an hour; for --unit money.")] = None,
    card: Card = "emoji",
    prompts_file: Annotated[
        str | None, typer.Option(help="Held-out prompts; default: the card's concepts and styles.")
    ] = None,
    samples: Annotated[int, typer.Option(help="How many drafts to score.")] = 500,
    seed: Annotated[
        int, typer.Option(help="Seed of the first draft; keep it away from the seeds you paint with.")
    ] = 1_000_000,
    student_steps: StudentSteps = None,
    steps: Steps = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a network call.")] = None,
    policy: Annotated[
        str, typer.Option(help="threshold, band, recheck, clear_recheck, pre_route, value or best_of_N (with --drafts N).")
    ] = "threshold",
    drafts: Annotated[int, typer.Option(help="Attempts of the student to paint, for best_of_N.")] = 1,
    tolerance: Annotated[float, typer.Option(help="Warn when the mean cost may miss the budget by more than this.")] = 0.03,
    table: Annotated[bool, typer.Option("--table", help="Show what fewer or more prompts would buy.")] = False,
    out: Annotated[Path, typer.Option(help="The artifact to write; a stopped run goes on where it was.")] = Path(
        "calibration.json"
    ),
    backend: Backend = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Score held-out drafts and find the threshold, or another policy, that spends a budget."""
    from allaprima.cli.calibrate import CalibrateOptions, calibrate_command
    from allaprima.models.placement.device_config import DeviceConfig

    given = {k: v for k, v in locals().items() if k in CalibrateOptions.__dataclass_fields__}
    calibrate_command(CalibrateOptions(**given, device_config=DeviceConfig.of(backend=backend, device=device, dtype=dtype)))


@app.command(epilog="Example: allaprima risk judged.csv --alpha 0.3 --delta 0.1")
def risk(
    judged: Annotated[
        Path, typer.Argument(help="CSV or JSONL of drafts: score, and loss in [0, bound] or student_preferred (0 or 1).")
    ],
    alpha: Annotated[float, typer.Option(help="The loss that must not be exceeded.")] = 0.1,
    delta: Annotated[float, typer.Option(help="Share of calibrations that may break the promise.")] = 0.1,
    promise: Annotated[
        str, typer.Option(help="About: accepted (drafts), sure (all drafts), expected (all, mean over calibrations).")
    ] = "accepted",
    bound: Annotated[float, typer.Option(help="The largest loss there is.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find a threshold that promises how much accepted drafts lose, from drafts that were judged."""
    from allaprima.cli.risk import risk_command

    risk_command(judged, alpha, delta, promise, bound, as_json)


@app.command(name="finetune-oracle", epilog="Example: allaprima finetune-oracle pairs.csv --out out/oracle")
def finetune_oracle(
    pairs: Annotated[
        Path, typer.Argument(help="CSV of labelled pairs: prompt, a, b (pictures), preference (a, b, tie or 0..1 for a).")
    ],
    card: Annotated[str, typer.Option(help="Whose oracle: a bundled card by name, or path of a card.yaml.")] = "emoji",
    steps: Annotated[int, typer.Option(help="At most; it stops when agreement on held-out prompts no longer rises.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 1e-4,
    held_out: Annotated[float, typer.Option(help="Share of the prompts to stop by, and again to report on.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of split and training.")] = 0,
    out: Annotated[Path, typer.Option(help="Training, oracle and card; a stopped run goes on.")] = Path("out/oracle"),
) -> None:
    """Teach the oracle what people prefer, from labelled pairs; says how often it agrees before and after."""
    from allaprima.cli.finetune import FinetuneOptions, finetune_command

    finetune_command(FinetuneOptions(pairs, card, steps, batch_size, learning_rate, held_out, seed, out))


@app.command(
    name="convert-oracle",
    epilog="Example: allaprima convert-oracle imagereward ImageReward.pt --tokenizer bert-base-uncased --out oracles/reward",
)
def convert_oracle(
    kind: Annotated[str, typer.Argument(help="imagereward, hpsv2, clip (open_clip's) or aesthetic.")],
    checkpoint: Annotated[Path, typer.Argument(help="The published file: .pt, .pth, .bin or .safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder that is made; a card's oracle.source.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder: bert-base-uncased's for imagereward, CLIP's for hpsv2 and clip.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="Of aesthetic: a folder of openai/clip-vit-large-patch14.")] = None,
    activation: Annotated[str, typer.Option(help="Of clip: gelu; quick_gelu for OpenAI's and -quickgelu models.")] = "gelu",
) -> None:
    """Turn a published oracle into safetensors, once; nothing in the file is run."""
    from allaprima.cli.convert_oracle import convert_oracle_command

    convert_oracle_command(kind, checkpoint, out, tokenizer, clip, activation)


@app.command(epilog="Example: allaprima frontier --quick --prompts 60 --out out/frontier")
def frontier(
    card: Card = "emoji",
    prompts_file: Annotated[str | None, typer.Option(help="Prompts; default: the card's concepts and styles.")] = None,
    prompts: Annotated[int, typer.Option(help="How many prompts.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Pictures a prompt and method.")] = 3,
    budgets: Annotated[str, typer.Option(help="Mean steps a picture for cascades, comma-separated.")] = "5,8,10,12,15,20",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer methods: a first look.")] = False,
    reference: Annotated[
        Path | None, typer.Option(help="Safetensors with `features` of real pictures, for the Frechet distance.")
    ] = None,
    usual_guidance: Annotated[
        float | None, typer.Option(help="The teacher's guidance scale in the baselines; default: the card's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder; a stopped run goes on where it was.")] = Path("out/frontier"),
) -> None:
    """Draw quality against cost: student, teacher, refine all, every policy, and what no policy can reach."""
    from allaprima.cli.frontier import FrontierOptions, frontier_command
    from allaprima.core.errors import SettingError

    try:
        numbers = tuple(float(b) for b in budgets.split(","))
    except ValueError as e:
        raise SettingError(f"budgets={budgets!r} are not numbers with commas between: 8,10,15 for example.") from e
    frontier_command(FrontierOptions(card, prompts_file, prompts, seeds, numbers, quick, reference, usual_guidance, out))


@app.command(epilog="Example: allaprima analyze --prompts 200 --seeds 2 --out out/analysis")
def analyze(
    card: Card = "emoji",
    prompts_file: Annotated[
        str | None, typer.Option(help="Prompts, painted as they are; default: the card's concepts and styles.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="How many prompts; intervals are over prompts.")] = 200,
    seeds: Annotated[int, typer.Option(help="Pairs a prompt; diversity needs 2 or more.")] = 2,
    seed: Annotated[
        int, typer.Option(help="Seed of the first pair; keep it away from the seeds you calibrate with.")
    ] = 7_000_000,
    measures: Annotated[
        str,
        typer.Option(
            help="Comma list; default all: distance (always), lpips, complexity, length, influence, curvature, decisions,"
            " diversity."
        ),
    ] = "",
    skip: Annotated[
        str, typer.Option(help="Comma list of measures to leave out; lpips and influence are the slow ones.")
    ] = "",
    features: Annotated[
        str,
        typer.Option(help="Of the distance: efficientnet-lite0, or a folder of a vision model (DreamSim's, DINOv2, ...)."),
    ] = "efficientnet-lite0",
    icnet: Annotated[
        Path | None, typer.Option(help="ICNet's score as ONNX, for complexity; without it a stand-in, named as such.")
    ] = None,
    tie: Annotated[
        float, typer.Option(help="Pairs whose scores differ by this many standard deviations of the gap or less are ties.")
    ] = 0.25,
    student_steps: StudentSteps = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    out: Annotated[Path, typer.Option(help="Folder of report.html, report.json, pairs.csv; a stopped run goes on.")] = Path(
        "out/analysis"
    ),
) -> None:
    """Look inside a pair: where student and teacher differ, who wins, and what tells it beforehand (docs/analysis.md)."""
    from allaprima.cli.analyze import AnalyzeOptions, analyze_command

    given: dict[str, Any] = {k: v for k, v in locals().items() if k in AnalyzeOptions.__dataclass_fields__}
    for name in ("measures", "skip"):
        given[name] = tuple(part.strip() for part in given[name].split(",") if part.strip())
    analyze_command(AnalyzeOptions(**given))


@app.command(
    epilog="Example: allaprima evaluate out/first --metrics judge,oracle_score --against out/teacher",
)
def evaluate(
    pictures: Annotated[
        Path | None, typer.Argument(help="Folder of PNG, JPEG or WebP; run folder of generate; or its results.jsonl.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Comma list: frechet, kernel, precision_recall (need --reference); clip_score (--clip), judge, retrieval,"
            " oracle_score (--card), diversity (prompts); preservation, dreamsim, lpips (--reference, pair by pair)."
        ),
    ] = None,
    which: Annotated[str, typer.Option(help="Of a run: final, draft, or both (and finals against drafts).")] = "final",
    reference: Annotated[
        Path | None, typer.Option(help="Folder or run of real pictures, or .safetensors with their 'features'.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Another folder or run: differences and win rate, pair by pair.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="efficientnet-lite0, a transformers vision folder, or Inception .safetensors.")
    ] = "efficientnet-lite0",
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP model, for clip_score.")] = None,
    card: Annotated[str | None, typer.Option(help="Card of the pictures; default: what the run says.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(help="A prompt a picture, in the order of sorted names; without PICTURES: paint these into --out."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Painting: seed of the first picture.")] = None,
    images_per_prompt: Annotated[int | None, typer.Option(help="Painting: pictures a prompt.")] = None,
    budget: Annotated[float | None, typer.Option(help="Painting: mean steps a picture.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Painting: accept drafts that score at least this.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures that are measured at a time.")] = 32,
    subset_size: Annotated[
        int | None, typer.Option(help="Kernel distance: pictures a subset; default 1000, or as many as there are.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Where features are kept; default $XDG_CACHE_HOME/allaprima.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The report; default evaluation.json. Painting: the run folder that gets it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout as well.")] = False,
) -> None:
    """Measure pictures: quality, fit to prompts, diversity, with intervals; alone or against others."""
    from allaprima.cli.evaluate import EvaluateOptions, evaluate_command

    fields = EvaluateOptions.__dataclass_fields__
    evaluate_command(EvaluateOptions(**{k: v for k, v in locals().items() if k in fields}))


@app.command(
    epilog="Example: allaprima distill consistency teacher=emoji loop.max_train_steps=200 --out runs/student",
)
def distill(
    method: Annotated[str | None, typer.Argument(help="One of --list; may also be in the recipe.")] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(help="key=value on top of the recipe: loop.learning_rate=1e-4, options.w=[1,8].")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML: method, teacher, data, options, loop.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the methods and their options, and stop.")] = False,
    out: Annotated[Path, typer.Option(help="Training, then student, card and page; a stopped run goes on.")] = Path(
        "out/student"
    ),
) -> None:
    """Make a student from a teacher: train, resume, and leave a card that generate paints with."""
    from rich.console import Console

    from allaprima.cli.distill import distill_command, list_methods

    if list_:
        list_methods(Console())
        return
    given = list(changes or [])
    if method is not None and "=" in method:
        method, given = None, [method, *given]
    distill_command(method, recipe, given, out)


@app.command(
    epilog="Example: allaprima serve --port 8000, then: curl 127.0.0.1:8000/v1/images/generations"
    """ -H 'Content-Type: application/json' -d '{"prompt": "red apple, noto"}'""",
)
def serve(
    card: Card = "emoji",
    calibration: Annotated[Path | None, typer.Option(help="Artifact of calibrate, in place of the card's own.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's want --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any that is free; the address is printed.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="File of NAME KEY, one client a line, not readable by others; or $ALLAPRIMA_KEYS.")
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Without keys, answer whoever reaches it, not this machine alone.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(help="Pictures a network call; constant, padded. 1 is soonest for one caller, 16 paints most.")
    ] = 4,
    max_queue: Annotated[int, typer.Option(help="Pictures that may wait; beyond: 429 with Retry-After.")] = 256,
    budget: Annotated[
        float | None, typer.Option(help="Mean cost a picture of requests that don't say; default: the calibration's.")
    ] = None,
    latency_objective: Annotated[
        float | None, typer.Option(help="Seconds: while 95 % take longer, thresholds that callers left open are lowered.")
    ] = None,
    lowest_threshold: Annotated[
        float | None, typer.Option(help="How far; default: to where half as many drafts fall short.")
    ] = None,
    oracle_failure: Annotated[
        str, typer.Option(help="A draft that the oracle fails on: policy (it falls short), accept, regenerate or refuse.")
    ] = "policy",
    oracle_timeout: Annotated[float | None, typer.Option(help="Seconds after which it has failed.")] = None,
    max_pictures: Annotated[int | None, typer.Option(help="Pictures a request (n); default 10.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Pixels a picture; default four times the card's.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Teacher steps a picture; default 100.")] = None,
    max_per_client: Annotated[int | None, typer.Option(help="A client's pictures at the same time; default 64.")] = None,
    drain_seconds: Annotated[
        float, typer.Option(help="At SIGTERM: time to finish what was accepted; the rest is handed back (503).")
    ] = 60.0,
    traces: Annotated[
        str | None, typer.Option(help="OTLP address for spans, http://.../v1/traces; or $OTEL_EXPORTER_OTLP_ENDPOINT.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="process (here), or ray: pools of workers on a Ray cluster behind the same API.")
    ] = "process",
    ray_address: RayAddress = None,
    pools: Annotated[
        str, typer.Option(help="With --engine ray: student=2,oracle=1,teacher=1-4; a range grows with what is in flight.")
    ] = "",
    backend: Backend = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve a card as OpenAI's images API: generations, edits, models, health, metrics (docs/serving.md)."""
    from allaprima.cli.serve import ServeOptions, serve_command
    from allaprima.models.placement.device_config import DeviceConfig

    given: dict[str, Any] = {k: v for k, v in locals().items() if k in ServeOptions.__dataclass_fields__}
    serve_command(ServeOptions(**given, device_config=DeviceConfig.of(backend=backend, device=device, dtype=dtype)))


@app.command(epilog="Example: allaprima plan plan.yaml --p95 4 --plot plan.png")
def plan(
    file: Annotated[Path, typer.Argument(help="YAML of demand, hardware and frontier (docs/planning.md).")],
    pictures_a_second: Annotated[float | None, typer.Option(help="Mean rate of arrivals.")] = None,
    pictures_a_day: Annotated[float | None, typer.Option(help="Instead of a rate a second.")] = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Squared variation of the times between arrivals; 1 is Poisson.")
    ] = None,
    p95: Annotated[float | None, typer.Option(help="Seconds that 95 of 100 pictures may take at most.")] = None,
    quality: Annotated[float | None, typer.Option(help="The cheapest fleet at least so good.")] = None,
    cost_at_most: Annotated[float | None, typer.Option(help="Instead: the best fleet for so much an hour.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="apart (pools of their own), together (every machine does all), or either.")
    ] = None,
    simulate: Annotated[int, typer.Option(help="Pictures to check the plan with; 0: formulas alone.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="PNG: latency and cost against the threshold.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many machines a demand needs, which threshold, and what it costs against the teacher alone."""
    from allaprima.cli.plan import PlanOptions, plan_command

    plan_command(PlanOptions(**{k: v for k, v in locals().items() if k in PlanOptions.__dataclass_fields__}))


app.command(epilog="Example: allaprima cards")(cards)
app.add_typer(card_app, name="card")
app.add_typer(study_app, name="study")
