"""The options of a published checkpoint: one record makes flags, variables, checks and the table of app/README.md."""

import argparse
from pathlib import Path

import pytest

from pipeline import ModelOptions, UserError
from pipeline.options import flag, readme_table, variable

ROOT = Path(__file__).parents[1]
ALL = {
    "eight_bit": True,
    "int8": True,
    "fp8": True,
    "gpu_memory": 20.5,
    "retrieve": 64,
    "kernels": "torch",
    "mode": "streamed",
}


def from_flags(*arguments: str, otherwise: ModelOptions | None = None) -> ModelOptions:
    parser = argparse.ArgumentParser()
    ModelOptions.add_flags(parser)
    return ModelOptions.from_flags(parser.parse_args(arguments), otherwise)


def test_only_what_was_given_is_told() -> None:
    assert ModelOptions().given() == from_flags().given() == ModelOptions.from_environment({}).given() == {}
    assert (
        from_flags(
            "--eight-bit",
            "--int8",
            "--fp8",
            "--gpu-memory",
            "20.5",
            "--retrieve",
            "64",
            "--kernels",
            "torch",
            "--mode=streamed",
        ).given()
        == ALL
    )
    assert ModelOptions.checked({"eight_bit": False, "retrieve": None}).given() == {}


def test_variables_say_the_same_as_flags() -> None:
    told = {"VAMBA_EIGHT_BIT": "1", "VAMBA_INT8": "1", "VAMBA_GPU_MEMORY": "20.5", "VAMBA_RETRIEVE": "64"}
    told |= {"VAMBA_FP8": "1", "VAMBA_KERNELS": "torch", "VAMBA_MODE": "streamed", "OTHER": "x"}
    assert ModelOptions.from_environment(told).given() == ALL
    assert ModelOptions.from_environment({"VAMBA_INT8": "0", "VAMBA_RETRIEVE": ""}).given() == {}


def test_a_flag_wins_over_a_variable() -> None:
    space = ModelOptions.from_environment({"VAMBA_RETRIEVE": "64", "VAMBA_INT8": "1"})
    assert from_flags("--retrieve", "8", otherwise=space).given() == {"retrieve": 8, "int8": True}


@pytest.mark.parametrize(
    ("name", "value"),
    [("retrieve", 0), ("retrieve", -1), ("retrieve", "many"), ("retrieve", 2.5), ("int8", "perhaps")]
    + [("kernels", "fast"), ("mode", "both")]
    + [("gpu_memory", value) for value in (0, -1.0, "inf", float("nan"), "a lot")],
)
def test_what_cannot_be_is_refused_in_a_sentence_that_names_it(name, value) -> None:
    with pytest.raises(UserError, match=f"^{name} must be .*nothing was loaded; choose another value\\.$"):
        ModelOptions.checked({name: value})
    with pytest.raises(UserError, match=f"^{variable(name)} must be "):
        ModelOptions.from_environment({variable(name): str(value)})
    if name != "int8":
        with pytest.raises(UserError, match=f"^{flag(name)} must be "):
            from_flags(f"{flag(name)}={value}")


def test_what_goes_for_every_model_is_shared_with_one_that_is_compared() -> None:
    assert ModelOptions.checked(ALL).shared().given() == {"kernels": "torch", "mode": "streamed"}


def test_an_option_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match="no option colour"):
        ModelOptions.checked({"colour": "red"})


def test_the_pages_readme_has_the_table_of_the_record() -> None:
    lines = list(readme_table())
    assert len(lines) == 2 + len(ModelOptions.model_fields)
    assert "\n".join(lines) in (ROOT / "app" / "README.md").read_text()
