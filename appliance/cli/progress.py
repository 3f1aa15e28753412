"""A progress bar on standard error, for steps that report a name and a fraction."""

from types import TracebackType

from rich import console, progress


class Bar:
    """Appears with the first report and is gone at the end; plain lines where there is no terminal.

    Args:
        title: printed once, above the bar.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = console.Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: progress.TaskID | None = None

    def __call__(self, step: str, fraction: float) -> None:
        """Show that `step` is under way, with this share of everything done."""
        if self._task is None:
            self._console.print(self._title, highlight=False, markup=False)
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        self._bar.update(self._task, description=step, completed=fraction)

    def stop(self) -> None:
        """Take the bar away. May be called again."""
        self._bar.stop()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
