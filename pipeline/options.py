"""How a model is run: how a published checkpoint can do with less, and whose kernels compute; in one record.

Names, flags, environment variables, checks, help and the table of app/README.md come from here. The command line, page
and the bench make their flags of it; `load` and whoever builds a model by hand check values with it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.stream import UserError


@dataclass(frozen=True)
class OptionText:
    """What people read about one option.

    help: behind its flag. must: what its value must be, after "must be". metavar, example: its value in the help and in
    the table. does, costs: cells of the table in app/README.md, measured by `bench --size published` on an H100.
    """

    help: str
    must: str
    does: str
    costs: str
    metavar: str | None = None
    example: str = "1"


class ModelOptions(BaseModel):
    """What a Vamba checkpoint may be told when it is loaded; `endless` is for those that ship, too; `kernels`,
    `mode` and `senses` are for every model, and `kernels` is for the whole process.

    An option at its default is one that was not given.

    Frozen, and valid by construction: `checked`, `from_environment` and `from_flags` raise UserError for a value that
    cannot be, in one sentence that names the option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    eight_bit: Annotated[
        bool,
        OptionText(
            help="keep the memory's keys and values in 8 bits",
            must="on or off (1 or 0)",
            does="memory in 8 bits: an hour is 15.7 GB",
            costs="as much as bf16 itself (1.2 % of the logits' spread); watching takes 1.07 of the time, "
            "a first word at minute 60 70 ms instead of 44",
        ),
    ] = False
    int8: Annotated[
        bool,
        OptionText(
            help="keep the weights of linear layers in 8 bits",
            must="on or off (1 or 0)",
            does="weights of the linear layers in 8 bits: 12.5 GB with the tower. "
            "With `--eight-bit` 28 minutes fit into 24 GB",
            costs="1.5 % of the logits' spread, other words now and then; live chunks take 8 ms instead of 5, "
            "words 16 instead of 20",
        ),
    ] = False
    fp8: Annotated[
        bool,
        OptionText(
            help="products of what watches in 8-bit floating point (H100 or newer); of what answers weights in 8 bits",
            must="on or off (1 or 0)",
            does="on an H100 or newer: products of what watches in 8-bit floating point (e4m3), 1.7 to 1.9 times as "
            "fast as in bf16, and weights of what answers in 8 bits",
            costs="7 times what bf16 itself costs (7 % of the logits' spread; 2.8 times on a small model), so not "
            "recommended; an hour is watched in 8.2 s instead of 11.7",
        ),
    ] = False
    gpu_memory: Annotated[
        float | None,
        Field(gt=0),
        OptionText(
            help="of a video's memory that stay on the GPU; what is older lies in the computer's",
            must="a number of gigabytes, more than 0",
            does="the newest 20 GB of a video's memory stay on the GPU, the rest goes to the computer's, exactly",
            costs="with 15.5 GB there a word takes 300 ms instead of 20",
            metavar="GB",
            example="20",
        ),
    ] = None
    retrieve: Annotated[
        int | None,
        Field(gt=0),
        OptionText(
            help="answer from the N frames that fit the question best",
            must="a whole number of frames, more than 0",
            does="an answer reads the 64 frames its question looks at most: 9 ms a word however long the video",
            costs="an approximation, and the page says so; a first word 75 ms instead of 44",
            metavar="N",
            example="64",
        ),
    ] = None
    endless: Annotated[
        float | None,
        Field(gt=0),
        OptionText(
            help="for streams without an end: the newest so many minutes stay in memory, older ones go to a file and "
            "are read back where a question points to",
            must="a number of minutes, more than 0",
            does="what is older than 10 minutes lies in a nameless file (in `TMPDIR`) for a day. The embedded model "
            "takes it, too, and reads back what its question is about, exactly; a Vamba 64 frames (or `--retrieve N`). "
            "The transformers beside them keep what their context holds (13 and 3.4 minutes) and count what they drop",
            costs="disk: as much as memory otherwise, 141 MB an hour or 30.9 GB; what the published model says about "
            "older minutes is an approximation, and the page says so",
            metavar="MINUTES",
            example="10",
        ),
    ] = None
    kernels: Annotated[
        Literal["auto", "own", "published", "torch"],
        OptionText(
            help="who computes on a GPU: own (Triton kernels), published (mamba-ssm and causal-conv1d run the mixers), "
            "torch, or auto: the first of them that runs there",
            must="auto, own, published or torch",
            does="mamba-ssm and causal-conv1d run the mixers instead of our kernels, with every model; "
            "`own` and `torch` name the others",
            costs="one mixer of 9,568 tokens takes 3.0 ms instead of 2.7",
            metavar="WHOSE",
            example="published",
        ),
    ] = "auto"

    mode: Annotated[
        Literal["native", "streamed"] | None,
        OptionText(
            help="what mmMamba, HoVLE, ML-Mamba and Gemamba answer from: native (the few pictures they were trained "
            "on, chosen from what was seen; by default) or streamed (what they carried through all pictures)",
            must="native or streamed",
            does="mmMamba, HoVLE, ML-Mamba and Gemamba answer from what they carried through all pictures, not "
            "from the few they were trained on; one stream can do both",
            costs="more than they ever saw, and every answer says so",
            metavar="MODE",
            example="streamed",
        ),
    ] = None

    senses: Annotated[
        str | None,
        OptionText(
            help="what is told beside what the model itself sees: all (by default), none, or names with commas "
            "between them (pipeline/README.md)",
            must="all, none or names of senses",
            does="only these senses look: what the others would tell is not known",
            costs="a picture takes less; see the table of senses in pipeline/README.md",
            metavar="NAMES",
            example="colours,light",
        ),
    ] = None

    eyes: Annotated[
        str | None,
        OptionText(
            help="a SigLIP-class model (a folder or a Hub id) that names things and places in the embedded model's "
            "stead",
            must="a folder or a Hub id",
            does="a SigLIP-class model of transformers names things and places for the embedded model, in the same "
            "index; the state is the same",
            costs="what that model takes a picture; how often its names are right was not measured here",
            metavar="NAME",
            example="google/siglip2-base-patch16-224",
        ),
    ] = None

    @classmethod
    def checked(cls, values: Mapping[str, Any], called: Callable[[str], str] = str) -> Self:
        """The record of these values (strings are read, None is not given). called: an option's name in sentences."""
        given = {name: value for name, value in values.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
        if name not in cls.model_fields:
            raise UserError(f"There is no option {name}, so nothing was loaded; use {', '.join(cls.model_fields)}.")
        raise UserError(
            f"{called(name)} must be {option_text(name).must}, and {str(given[name])[:40]!r} is not, "
            "so nothing was loaded; choose another value."
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """What the variables say; an empty one says nothing."""
        return cls.checked({name: environment.get(variable(name)) or None for name in cls.model_fields}, variable)

    @classmethod
    def add_flags(cls, parser: argparse._ActionsContainer) -> None:
        """A flag for every option. Values are read by `from_flags`, not by argparse."""
        for name, field in cls.model_fields.items():
            if field.annotation is bool:
                parser.add_argument(flag(name), action="store_true", default=None, help=option_text(name).help)
            else:
                parser.add_argument(flag(name), metavar=option_text(name).metavar, help=option_text(name).help)

    @classmethod
    def from_flags(cls, args: argparse.Namespace, otherwise: ModelOptions | None = None) -> Self:
        """What the flags of `add_flags` say; where one was not given, what `otherwise` does."""
        flags = {name: getattr(args, name) for name in cls.model_fields}
        told = {name: value for name, value in flags.items() if value is not None}
        return cls.checked((otherwise.given() if otherwise else {}) | told, flag)

    def shared(self) -> ModelOptions:
        """Those that go for every model."""
        return ModelOptions(kernels=self.kernels, mode=self.mode, senses=self.senses)

    def saving(self) -> dict[str, Any]:
        """What a Vamba's memory is told."""
        return self.model_dump(include={"eight_bit", "retrieve", "gpu_memory", "endless"})

    @property
    def rounding(self) -> Literal["int8", "fp8"] | None:
        """How weights are rounded; fp8 has 8-bit integers where int8 alone would matter, and so wins."""
        return "fp8" if self.fp8 else "int8" if self.int8 else None

    def given(self) -> dict[str, Any]:
        """Only what differs from the defaults: models that take none of these are then told nothing."""
        return self.model_dump(exclude_defaults=True)


def flag(name: str) -> str:
    """eight_bit -> --eight-bit"""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """eight_bit -> VAMBA_EIGHT_BIT"""
    return "VAMBA_" + name.upper()


def option_text(name: str) -> OptionText:
    """What people read about the option of that name."""
    return next(part for part in ModelOptions.model_fields[name].metadata if isinstance(part, OptionText))


def readme_table() -> Iterator[str]:
    """The lines of the table of options in app/README.md."""
    yield "| variable, flag | what it does | what it costs |"
    yield "|---|---|---|"
    for name, field in ModelOptions.model_fields.items():
        said = option_text(name)
        value = "" if field.annotation is bool else f" {said.example}"
        yield f"| `{variable(name)}={said.example}`, `{flag(name)}{value}` | {said.does} | {said.costs} |"
