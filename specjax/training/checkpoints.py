"""Checkpoints of a training run (orbax): written whole, resumed to the same next step."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
  """The checkpoints of one run, newest last; a partly written one is never seen.

  Attributes:
    directory: where they lie.
  """

  def __init__(self, directory: str | pathlib.Path, *, keep: int = 2):
    """Opens or makes the folder; keeps the newest `keep` checkpoints."""
    self.directory = pathlib.Path(directory).resolve()
    self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
    )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Writes `state` in the background; the rename at the end makes it visible."""
    self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, step: int, like: Any) -> Any:
    """Reads step `step` into arrays shaped and placed like those of `like`.

    Raises:
      ValueError: if the checkpoint's tree or shapes are not those of `like` (orbax's own
        message, which names them).
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

  def wait(self) -> None:
    """Returns when everything saved so far is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go of the folder."""
    self._manager.close()
