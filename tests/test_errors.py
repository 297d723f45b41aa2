import pytest

from launcher import errors
from trainer.contract import LdlmError


@pytest.mark.parametrize(("error", "code"), [
    ("Refused", 1), ("UsageError", 2), ("RecipeError", 3), ("ConfigError", 3), ("NoOfferError", 4),
    ("EngineError", 5), ("RunRecordError", 6), ("StoreError", 6),
])
def test_each_error_has_the_exit_code_of_its_kind(error, code):
    kind = getattr(errors, error)
    assert issubclass(kind, LdlmError)
    assert kind.cli_exit_code == code
    assert error in errors.__all__


def test_an_error_reads_place_problem_fix():
    error = errors.RecipeError("train.steps is 0", place="recipes/x.yaml:3", fix="set it to 1")
    assert str(error) == "recipes/x.yaml:3: train.steps is 0\n  fix: set it to 1"
    assert str(errors.EngineError("is down")) == "is down"
