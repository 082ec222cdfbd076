"""Calls that every training step would make for nothing."""

from collections.abc import Iterable

from lightning.pytorch import Callback

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def skip_idle_hooks(callbacks: Iterable[Callback]) -> None:
    """Let the Trainer skip the hooks of a step that a callback has only inherited.

    It calls each hook of each callback in a profiler's context of its own, some ninety a step, unless the hook is no
    function, which None is not.
    """
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if hook not in vars(callback) and getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)
