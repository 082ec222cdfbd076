"""Non-finite steps: when they are detected, and how they are reported."""

from collections.abc import Callable, Sequence

import pytest
import torch

from latentfaces.training import NonFiniteError, NonFiniteGuard

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NAN, INF = torch.tensor(float("nan")), torch.tensor(float("inf"))
ONE = torch.tensor(1.0)


def names(*photos: str) -> Callable[[], Sequence[str]]:
    """Return a function that looks up a batch of these images."""
    return lambda: photos


def test_a_step_is_looked_at_before_it_is_taken_and_on_a_gpu_when_the_next_one_comes_or_is_saved() -> None:
    for device in (CPU, GPU):
        steps = NonFiniteGuard()
        steps.add({"loss": NAN}, names("a", "b"))
        if device == GPU:
            steps.close(3, {"norm": NAN}, device)
            steps.add({"loss": ONE}, names("c"))
        with pytest.raises(NonFiniteError, match="loss is nan at step 3, in a batch of a, b: training stops"):
            steps.close(3 if device == CPU else 4, {"norm": NAN}, device)
    steps = NonFiniteGuard()
    steps.close(7, {"norm": INF}, GPU)
    with pytest.raises(NonFiniteError, match="norm is inf at step 7: training stops"):
        steps.check()


def test_of_several_batches_of_a_step_those_whose_loss_is_no_number_are_told() -> None:
    steps = NonFiniteGuard()
    steps.add({"loss": ONE, "kl": ONE}, names("a"))
    steps.add({"loss": INF, "kl": INF}, names("b", *"cdefghijk"))
    with pytest.raises(NonFiniteError) as told:
        steps.close(0, {"norm": NAN}, CPU)
    assert str(told.value).startswith(
        "loss is inf and kl is inf at step 0, in a batch of b, c, d, e, f, g, h, i and 2 more: training stops"
    )


def test_a_gradient_alone_is_told_with_all_photos_of_its_step() -> None:
    steps = NonFiniteGuard()
    for photo in "ab":
        steps.add({"loss": ONE}, names(photo))
    steps.close(0, {"norm": ONE, "other": None}, CPU)
    for photo in "cd":
        steps.add({"loss": ONE}, names(photo))
    with pytest.raises(NonFiniteError, match=r"^other is nan at step 1, in a batch of c, d: "):
        steps.close(1, {"norm": ONE, "other": NAN}, CPU)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_steps_are_left_out_before_they_are_taken_up_to_so_many(
    device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = NonFiniteGuard("skip", max_skipped_steps=2)
    skipped = []
    for number, norm in enumerate([ONE, NAN, ONE, INF, ONE]):
        steps.add({"loss": norm}, names(f"photo {number}"))
        steps.close(number, {"norm": norm}, device)
        skipped.append(steps.skipped)
    assert skipped == [False, True, False, True, False]
    assert steps.num_skipped == 2
    said = capsys.readouterr().err
    assert "loss is nan at step 1, in a batch of photo 1: the step is skipped (1 of at most max_skipped_ste" in said
    steps.add({"loss": NAN}, names("photo 5"))
    with pytest.raises(NonFiniteError, match="after max_skipped_steps=2 skipped steps"):
        steps.close(5, {"norm": NAN}, device)
