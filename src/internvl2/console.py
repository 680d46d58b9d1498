"""What a person watching the terminal sees beside the answer: log lines and progress, on stderr.

Modules log through `logging.getLogger(__name__)` and never print; the command line alone decides
where lines go. Progress bars appear on terminals only, so that a log file stays readable.
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(_drop_info_label)
    logger.addHandler(handler)


def progress(
    total: int | None, description: str, *, unit: str = "it", bytes_scale: bool = False
) -> "tqdm":
    """A progress bar on standard error; call `update(n)` and `close()`, or use it in `with`."""
    from tqdm import tqdm

    return tqdm(
        total=total,
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


def _drop_info_label(record: logging.LogRecord) -> bool:
    record.levelname = record.levelname.lower()
    return True
