"""What a person sees while AutoAttack runs: how many images are left, what they come to, and for how long."""

from __future__ import annotations

import contextlib


class Bar(contextlib.AbstractContextManager):
    """A bar whose end comes nearer whenever an image breaks; nothing at all unless enabled."""

    def __init__(self, *, enabled: bool, num_images: int):
        self._num_images = num_images
        self._progress = None
        self._done = 0
        self._left: int | None = None
        if not enabled:
            return
        from rich import progress  # not at the top: whoever attacks without a bar need not load it

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.fields[robust]} images left, accuracy {task.fields[accuracy]:.2%}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(compact=True),
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task("autoattack", total=None, robust=num_images, accuracy=1.0)

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, attack: str, *, left: int, robust: int) -> None:
        """Work still to be done at most, in any unit, and images still robust."""
        if not self._progress:
            return
        if self._left is not None:
            self._done += max(self._left - left, 0)
        self._left = left
        self._progress.update(
            self._task,
            description=attack,
            completed=self._done,
            total=self._done + left,
            robust=robust,
            accuracy=robust / self._num_images,
        )
