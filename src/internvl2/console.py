"""What a person watching the terminal sees beside the answer: log lines and progress, on stderr.

Modules log through `logging.getLogger(__name__)` and never print; the command line alone decides
where lines go. Progress bars appear on terminals only, so that a log file stays readable; a line
that comes while there is a bar is written above it.
"""

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def set_up_logging(*, verbose: bool = False) -> None:
    """Sends the package's log lines to standard error, one plain line each."""
    logger = logging.getLogger("internvl2")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = _AboveBars(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(_drop_info_label)
    logger.addHandler(handler)


def progress(
    total: int | None,
    description: str,
    *,
    unit: str = "it",
    bytes_scale: bool = False,
    initial: int = 0,
) -> "tqdm":
    """A progress bar on standard error; call `update(n)` and `close()`, or use it in `with`.

    What was done before, `initial`, counts for how far the bar is and not for how fast it goes.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit="B" if bytes_scale else unit,
        unit_scale=bytes_scale,
        file=sys.stderr,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
    )


def one_line(error: BaseException) -> str:
    """The message of an error on a single line; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


class _AboveBars(logging.StreamHandler):
    """Takes the bars away while a line is written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line."""
        if "tqdm" not in sys.modules:  # then there is no bar, and nothing to import for
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def _drop_info_label(record: logging.LogRecord) -> bool:
    record.levelname = record.levelname.lower()
    return True
