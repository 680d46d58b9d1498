"""`internvl2 data convert`: a data set in another form, its boxes in thousandths."""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from internvl2 import console
from internvl2.cli.options import as_typed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Convert:
    """Write a data set in another form, or annotated pictures as questions and answers."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """File or folder: any form that `train` reads, COCO's json, a folder of LabelMe or VOC."""
    destination: Annotated[Positional[Path], arg(metavar="DESTINATION")]
    """Folder to make; it appears when everything is written."""
    to: Literal["official", "llava", "sharegpt", "openai", "swift", "parquet"]
    """Form to write; official is jsonl with a meta.json."""
    source_form: Annotated[
        Literal["auto", "records", "coco", "labelme", "voc"], arg(name="from")
    ] = "auto"
    """What the source is; found out unless given."""
    root: Annotated[str | None, as_typed("FOLDER")] = None
    """Where relative paths of media start; the folder of the file that names them unless given."""
    copy_media: bool = False
    """Copy pictures and videos along; else the paths lead to where they are."""
    boxes: Annotated[
        Literal["pixel", "unit", "thousand", "auto"] | None,
        as_typed("", "pixel", "unit", "thousand", "auto"),
    ] = None
    """What boxes of records are in, to be written in thousandths; auto looks at all of a set."""
    bare_boxes: bool = False
    """Lists of four numbers without <box> are boxes too."""
    drawn_on: Annotated[Literal["stored", "shown"] | None, as_typed("", "stored", "shown")] = None
    """Where EXIF turns a picture, boxes are of it as stored (usual for coco, voc) or shown."""
    samples: Literal["picture", "category"] = "picture"
    """Of annotated pictures: a question for each, or for each category in it."""
    question: Annotated[str | None, as_typed("TEXT")] = None
    """What is asked about annotated pictures; {category} and {categories} are filled in."""
    empty: bool = False
    """Ask about pictures without annotation as well."""
    skip_bad: int = 0
    """How many faulty entries may be left out, into bad_samples.jsonl."""

    def run(self) -> int:
        """Nothing on standard output; the files are the result."""
        from internvl2.train.conversion.annotations import Wording
        from internvl2.train.conversion.convert import Conversion, convert
        from internvl2.train.conversion.record_sets import BoxOptions

        request = Conversion(
            self.source,
            self.destination,
            self.to,
            self.source_form,
            None if self.root is None else Path(self.root),
            BoxOptions(self.boxes, self.bare_boxes, self.drawn_on),
            Wording(self.samples, self.question, self.empty),
            self.copy_media,
            self.skip_bad,
        )
        with console.progress(None, "converting", unit="sample") as bar:
            done = convert(request, bar.update)
        for note in done.notes:
            logger.info("%s", note)
        left_out = f", left out {done.left_out} (bad_samples.jsonl)" if done.left_out else ""
        main = shlex.quote(str(done.main))
        logger.info("wrote %d samples%s; train with --data %s", done.samples, left_out, main)
        return 0
