"""`internvl2 data make`: a practice data set of drawn pictures with questions and answers."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from internvl2 import console

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Make:
    """Make a data set of drawn pictures, in the official jsonl format."""

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """New folder to fill; an unfinished set of the same options goes on."""
    count: int = 1000
    """How many samples."""
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK ...")] = ()
    """Names of tasks (reading, documents, charts ...); all that nano learned unless given. It has
    not learned `flags`."""
    split: Literal["train", "test"] = "train"
    """test has words, faces and layouts that train never has."""
    seed: int = 0
    """Another seed makes other samples."""
    difficulty: float = 1.0
    """0 to 1: smaller and longer text, more to count, more styles."""

    def run(self) -> int:
        """Nothing on standard output; the files are the result."""
        from internvl2.synthetic.writing import Request, write_set

        request = Request(self.count, self.tasks, self.split, self.seed, self.difficulty)
        if self.folder.is_file():
            raise ValueError(f"{self.folder} is a file; give a folder")
        with console.progress(self.count, "drawing", unit="sample") as bar:
            written = write_set(self.folder, request, bar.update)
        logger.info(
            "wrote %d samples to %s; train with --data %s",
            written,
            self.folder,
            shlex.quote(str(self.folder / "meta.json")),
        )
        return 0
