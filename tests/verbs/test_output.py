"""What becomes of the output when nobody reads it, or it cannot be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitrail


def run(*words: object, stdout: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)  # as people have it: what is written is sent late
    return subprocess.run(
        [sys.executable, "-m", "vitrail", *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
    )


@pytest.fixture
def unread():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_help_into_a_pipe_that_nobody_reads_ends_quietly(unread):
    ended = run("--help", stdout=unread)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_table_into_a_pipe_that_nobody_reads_ends_quietly(unread):
    assert run("models", "vit_micro_patch8", stdout=unread).stderr == ""


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no /dev/full")
def test_output_to_a_full_disk_is_one_sentence(tmp_path):
    with Path("/dev/full").open("w") as full:
        ended = run("check", tmp_path, stdout=full.fileno())
    assert ended.returncode == 1
    assert ended.stderr == "vitrail: No space left on device: the output.\n"


def test_models_lists_what_matches_with_its_cost(command):
    answer = command("models", "vit_micro_patch8", "vit_tiny_patch16")
    assert (answer.code, answer.err) == (0, "")
    assert "vit_micro_patch8" in answer.out
    assert "vit_small" not in answer.out
    num_parameters = sum(each.numel() for each in vitrail.create_model("vit_tiny_patch16").parameters())
    assert f"{num_parameters / 1e6:.2f} M" in answer.out


def test_models_says_what_is_wrong_with_an_image_size(command):
    answer = command("models", "vit_micro_patch8", "--image-size", 20)
    assert answer.code == 2
    assert "not a whole number of patches" in answer.sentence()


def test_the_version_and_the_help_are_for_all_verbs(command):
    assert command("--version").out == f"vitrail {vitrail.__version__}\n"
    answer = command()
    assert answer.code == 2
    assert "usage: vitrail VERB TARGET" in answer.out
    assert answer == command() != command("--help")
    assert json.dumps(command("--help").out) == json.dumps(answer.out)
