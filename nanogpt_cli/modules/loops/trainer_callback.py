"""A ``Watch`` for the ``Trainer`` of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.loops.watch import Watch

if TYPE_CHECKING:
    from transformers import TrainerCallback


def callback(watch: Watch) -> TrainerCallback:
    """A callback for ``Trainer(callbacks=[…])`` that tells ``watch`` of its steps.

    The Trainer gives its optimizer to the callback, and its loss as a mean over ``logging_steps``
    steps; the steps between have none. The run ends with ``Trainer.train``.

    Args:
        watch: of the Trainer's model.

    Raises:
        UserError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise UserError(
            "transformers is not installed", "pip install 'transformers[torch]'"
        ) from error

    class WatchCallback(TrainerCallback):
        """Passes on steps, logged losses and evaluations."""

        def __init__(self) -> None:
            self.waiting = False  # for the log of a step that was made

        def on_train_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
            """Take the optimizer, which the Trainer has made by now."""
            if optimizer is not None:
                watch.follow(optimizer)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Count a step whose log did not come."""
            if self.waiting:
                self.waiting = False
                watch.step()

        def on_step_end(self, *given: Any, **_: Any) -> None:
            """Count a step, or wait for its loss."""
            if given[2].should_log:  # the arguments, the Trainer's state, and its control
                self.waiting = True
            else:
                watch.step()

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            """Note the loss of the step that was just made."""
            if self.waiting and logs and "loss" in logs:
                self.waiting = False
                watch.step(
                    loss=logs["loss"], lr=logs.get("learning_rate"), grad_norm=logs.get("grad_norm")
                )

        def on_evaluate(self, *_: Any, metrics: Any = None, **__: Any) -> None:
            """Note a validation loss."""
            if metrics and "eval_loss" in metrics:
                watch.evaluate(loss=metrics["eval_loss"])

        def on_train_end(self, *_: Any, **__: Any) -> None:
            """End the run."""
            self.on_step_begin()
            watch.close()

    return WatchCallback()
