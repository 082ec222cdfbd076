"""Which errors are one line, and which keep their traceback."""

import pytest
from hydra.errors import InstantiationException

from latentfaces.cli.errors import one_line_errors


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors("sample", []):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_bug_in_a_constructor_keeps_its_traceback() -> None:
    with pytest.raises(InstantiationException), one_line_errors("train", []):
        raise InstantiationException("Error in call to target") from KeyError("bug")


def test_a_wrong_argument_of_a_constructor_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors("train", []):
        raise InstantiationException("Error in call to target\nfull_key: model.loss") from ValueError("too small")
    assert capsys.readouterr().err == "error: model.loss: too small\n"
