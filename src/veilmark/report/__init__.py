"""Pictures and tables: what a finished run looks like to the people who read it.

This room reads run folders only: it knows the files that a run leaves behind, not how they were made. The
models below are those files; whoever writes one may validate it against them.
"""

from __future__ import annotations

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue


class Weights(BaseModel):
    """The weights a run used: their name, number of parameters, and size on disk in megabytes."""

    name: str
    parameters: int
    megabytes: float


class FaceRow(BaseModel):
    """One face at one size; the pictures are paths relative to the run folder.

    ``expected_error_percent`` and ``shift_percent`` are percent of the inter-ocular distance; PSNR is in dB.
    """

    size: int = Field(gt=0)
    input: str
    hallucinated: str
    overlay_input: str
    overlay_hallucinated: str
    trust: float
    expected_error_percent: float
    shift_percent: float | None
    psnr: float | None = None
    bicubic_psnr: float | None = None


class Face(BaseModel):
    """One face of a demo, from its smallest size to its largest."""

    name: str
    source: str
    rows: list[FaceRow] = Field(min_length=1)


class DemoSummary(BaseModel):
    """``summary.json`` of a demo."""

    title: str
    created: str
    version: str
    weights: Weights
    seconds: float
    machine: str
    faces: list[Face]


class LandmarkScore(BaseModel):
    """Landmark figures of ``n`` faces; errors, rates and AUC in percent."""

    size: int
    box: str
    method: str
    n: int
    nme: float
    nme_median: float | None = None
    fr8: float | None = None
    fr10: float | None = None
    auc10: float | None = None
    calibration: float | None = None


class HallucinationScore(BaseModel):
    """Picture figures of ``n`` faces: PSNR in dB, SSIM in 0..1, of the network and of bicubic enlarging."""

    size: int
    n: int
    psnr_rgb: float
    ssim_rgb: float
    psnr_y: float
    ssim_y: float
    bicubic_psnr_rgb: float
    bicubic_ssim_rgb: float
    bicubic_psnr_y: float
    bicubic_ssim_y: float


class PublishedScore(BaseModel):
    """A row of the table that papers print for a set: ``n`` faces of a subset.

    The other keys are the columns' headings, with figures in percent; they differ from set to set.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]
    subset: str
    n: int


class Evaluation(BaseModel):
    """``metrics.json`` of an evaluation."""

    protocol: dict[str, JsonValue]
    landmarks: list[LandmarkScore]
    mean_shape: list[LandmarkScore] = []
    hallucination: list[HallucinationScore] = []
    published: list[PublishedScore] = []


class Spread(BaseModel):
    """A figure over clients."""

    mean: float
    min: float
    max: float


class Score(Spread):
    """What a federation's clients reach on the same test pictures, in percent: accuracy, or NME at the smallest size.

    ``per_client`` has a place for each client by its number, with None for one that could not be scored.
    ``own_distribution``, of accuracy, weighs classes as each client has them, and is the mean of that over clients.
    Landmarks have NME by face size, PSNR in dB of hallucinated faces, and NME of the clients without labels.
    """

    per_client: list[float | None]
    own_distribution: float | None = None
    sizes: dict[str, Spread] = {}
    psnr: Spread | None = None
    unlabelled: Spread | None = None


_SCORE = AliasChoices("accuracy", "nme")


class FederationRound(BaseModel):
    """One line of a federation's ``metrics.jsonl``: a round, counted from 1; bytes are of all clients."""

    model_config = ConfigDict(extra="ignore")
    step: int
    score: Score = Field(validation_alias=_SCORE)
    losses: dict[str, float]
    bytes_up: int
    bytes_down: int
    seconds: float


class FederationSummary(BaseModel):
    """``summary.json`` of a federation; ``data`` and ``training``, as in ``config.yaml``, are not in older ones."""

    model_config = ConfigDict(extra="ignore")
    title: str
    created: str
    method: str
    task: str
    dataset: str
    partition: str
    alpha: float | None
    clients: int
    rounds: int
    seed: int
    engine: str
    options: dict[str, JsonValue]
    data: dict[str, JsonValue] | None = None
    training: dict[str, JsonValue] | None = None
    score: Score = Field(validation_alias=_SCORE)
    bytes_up_per_client_round: int
    bytes_down_per_client_round: int
    seconds: float
    peak_rss_mb: float
    test_images: int
    classes: list[str]
    counts: list[list[int]]
    samples: list[str]
    refused: list[str]
