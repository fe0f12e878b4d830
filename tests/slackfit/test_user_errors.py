"""What a user got wrong is one line and exit code 2, in every package."""

from __future__ import annotations

import pytest

from slackfit.user_errors import user_errors
from supernet.cli import _user_errors as user_errors_of_supernet


@pytest.mark.parametrize("guard", [user_errors, user_errors_of_supernet])
def test_a_users_error_is_a_line_and_code_2_in_slackfit_and_its_twin(guard, capsys):
    with pytest.raises(SystemExit) as ended, guard(ValueError, OSError):
        raise ValueError("[NAME=]DIR is 'a b', allowed letters [/red]")
    assert ended.value.code == 2
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == (
        "",
        "error: [NAME=]DIR is 'a b', allowed letters [/red]\n",
    )


@pytest.mark.parametrize("guard", [user_errors, user_errors_of_supernet])
def test_a_fault_of_ours_is_left_alone(guard, capsys):
    with pytest.raises(KeyError, match="ours"), guard(ValueError):
        raise KeyError("ours")
    assert capsys.readouterr().err == ""


def test_a_command_may_put_its_name_before_the_error(capsys):
    with pytest.raises(SystemExit), user_errors(OSError, prefix="supernet top: http://x"):
        raise OSError("is away")
    assert capsys.readouterr().err == "supernet top: http://x: is away\n"
