"""Case 6: a sweep with jobs that fail."""

from pathlib import Path

import pytest
from helpers.commands import SHORT, TINY_VAE, Command

SWEEP = Path("outputs/sweeps/mixed")


def test_case_06_failed_jobs_are_told_in_their_folders_and_at_the_end_and_the_others_finish(
    train: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    # In this order: a user error, a job that finishes, another user error, a bug.
    vary = ["+callbacks.fault.step=99,1", "model.kl_weight.num_steps=0,10"]
    with pytest.raises(SystemExit) as exit_:
        train("-m", *TINY_VAE, *SHORT, "+callbacks.fault._target_=helpers.probes.Fault", *vary, "name=mixed")
    assert exit_.value.code == 1
    assert (SWEEP / "1" / "result.json").exists()
    assert not (SWEEP / "1" / "error.log").exists()

    (mistake,) = (SWEEP / "0" / "error.log").read_text().splitlines()
    assert "model.kl_weight.num_steps=0 is invalid: input should be greater" in mistake
    assert (SWEEP / "2" / "error.log").read_text() == (SWEEP / "0" / "error.log").read_text()
    fault = (SWEEP / "3" / "error.log").read_text()
    assert fault.splitlines()[0] == "RuntimeError: the planned fault"
    assert 'probes.py", line' in fault

    end = capfd.readouterr().err.splitlines()[-4:]
    assert [line.split(":")[0] for line in end[:3]] == ["Job 0 failed", "Job 2 failed", "Job 3 failed"]
    assert end[3].startswith("3 jobs failed")
    page = (SWEEP / "report.html").read_text()
    assert "4 jobs, 3 failed" in page
    assert page.count("model.kl_weight.num_steps=0 is invalid: input should be greater") == 2
    assert page.count("RuntimeError: the planned fault") == 1
