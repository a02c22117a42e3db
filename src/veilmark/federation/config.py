"""What a federation is told: task, data, owners, method and its options."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from veilmark.federation.methods import METHODS
from veilmark.federation.methods.method import Method
from veilmark.federation.tasks.classify import ClassifyConfig
from veilmark.federation.tasks.owned_faces import LandmarksConfig
from veilmark.run.config import resolve
from veilmark.run.errors import ConfigError
from veilmark.run.local_training import Training


class FederationConfig(BaseModel):
    """A federation of classifiers, but for the folder of its data and its secrets. See :func:`federation_from`.

    Attributes:
        kind: Says what recipe this is.
        task: What is learned.
        seed: Of partition, first weights and orders.
        clients: How many owners.
        rounds: How many rounds.
        method: What is trained and shared; see ``METHODS``.
        options: Options by method, e.g. ``{ppidsg: {head: kept}}``; those of other methods than the chosen one are
            checked and left alone, so that one recipe serves all.
        data: Pictures, partition, networks.
        training: How long and how fast clients learn.
        record: Rounds whose messages are kept for an audit: numbers from 1, ``first``, ``last``; or ``all``.
        most_examples: The largest sample count that the server believes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["federation"] = "federation"
    task: Literal["classify", "landmarks"] = "classify"
    seed: int = Field(0, ge=0)
    clients: int = Field(10, ge=1)
    rounds: int = Field(10, ge=1)
    method: str = "ppidsg"
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data: ClassifyConfig = ClassifyConfig()
    training: Training = Training()
    record: Literal["all"] | tuple[int | Literal["first", "last"], ...] = ("first", "last")
    most_examples: int = Field(100_000, ge=1)

    @field_validator("method")
    @classmethod
    def _method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"no method of that name; known: {', '.join(METHODS)}")
        return method

    @field_validator("record", mode="before")
    @classmethod
    def _record(cls, record: Any) -> Any:
        if isinstance(record, str) and record != "all":
            raise ValueError("rounds stand in a list, e.g. record=[last] or record=[1,5]; or all")
        return record

    def made_method(self) -> Method[Any]:
        """The method, with its options.

        Raises:
            ConfigError: If an option of any method is unknown or out of range, or the method does not learn the task.
        """
        for name in self.options:
            if name not in METHODS:
                raise ConfigError(f"options.{name}: no method of that name; known: {', '.join(METHODS)}")
            _checked(name, self.options[name])
        kind = METHODS[self.method]
        _check_fit(self.method, self.task)
        if kind.plain_sgd and (self.training.optimizer != "sgd" or self.training.clip):
            raise ConfigError(
                f"training.optimizer = {self.training.optimizer}, training.clip = {self.training.clip}: method "
                f"{self.method} trains by plain SGD beside optimisers of its own, and they would change nothing; leave "
                "them out"
            )
        return kind(_checked(self.method, self.options.get(self.method, {})))

    def recorded(self) -> list[int]:
        """Numbers of the recorded rounds, from 1.

        Raises:
            ConfigError: If a round is not one of the run.
        """
        if self.record == "all":
            return list(range(1, self.rounds + 1))
        named = {"first": 1, "last": self.rounds}
        numbers = sorted({named[r] if isinstance(r, str) else r for r in self.record})
        for number in numbers:
            if not 1 <= number <= self.rounds:
                raise ConfigError(f"record = {number}: rounds are 1 to {self.rounds}; or first, last, or all")
        return numbers


class LandmarksFederation(FederationConfig):
    """A federation of landmark detectors."""

    task: Literal["landmarks"] = "landmarks"
    # Another type in place of the base's: only what loads a task looks into it.
    data: LandmarksConfig = LandmarksConfig()  # type: ignore[assignment]


def federation_from(values: dict[str, Any], source: str) -> FederationConfig:
    """A federation's config, of the kind that its task asks for.

    Args:
        values: What recipe and settings, or a manifest, say.
        source: Where they come from, for the message.

    Raises:
        ConfigError: If the method does not learn the task, or a key or value is not allowed; the message names it and
            what would be.
    """
    method, task = values.get("method"), values.get("task", "classify")
    # Names that nobody knows are for the models below. The keys of another task's recipe are not what is wrong.
    if isinstance(method, str) and method in METHODS and any(task in kind.tasks for kind in METHODS.values()):
        _check_fit(method, task)
    return resolve(LandmarksFederation if values.get("task") == "landmarks" else FederationConfig, values, source)


def _check_fit(method: str, task: str) -> None:
    """Refuses a method that does not learn a task."""
    if task not in METHODS[method].tasks:
        fitting = ", ".join(name for name, kind in METHODS.items() if task in kind.tasks)
        raise ConfigError(f"method {method} does not learn the task {task}; these do: {fitting}")


def _checked(name: str, values: dict[str, Any]) -> BaseModel:
    model = METHODS[name].model
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(model.model_fields)) or "none"
            raise ConfigError(f"options.{name}: unknown key {key!r}; allowed: {allowed}") from None
        raise ConfigError(
            f"options.{name}.{key} = {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
        ) from None
