"""A few of the ways to die; `python -m benchmarks.deaths` tries all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
def test_a_killed_process_leaves_whole_files_and_what_goes_on_ends_the_same():
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.deaths", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert run.returncode == 0 and "5 of 5 ways" in run.stdout, run.stdout + run.stderr
