"""COCO, LabelMe and VOC become questions with answers in `<ref>` and `<box>`."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

from internvl2.processing.conversation import Picture
from internvl2.train.conversion.annotations import NOTHING, QUESTIONS, Wording
from internvl2.train.conversion.convert import Conversion, Converted, convert
from internvl2.train.data.formats import SampleError, open_source

COCO = {
    "info": {"description": "three pictures", "year": 2017},
    "licenses": [{"id": 1, "name": "CC"}],
    "images": [
        {"id": 9, "file_name": "street.jpg", "width": 200, "height": 100, "license": 1},
        {"id": 4, "file_name": "empty.jpg", "width": 100, "height": 100},
        {"id": 7, "file_name": "dog.jpg", "width": 100, "height": 50},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 50.5, 40], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [100, 50, 20, 30], "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 18, "bbox": [0, 0, 20, 30], "iscrowd": 0},
        {"id": 4, "image_id": 9, "category_id": 1, "bbox": [20, 10, 40, 30], "iscrowd": 0},
        {"id": 5, "image_id": 9, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1,
         "segmentation": {"counts": [1], "size": [100, 200]}},
    ],
    "categories": [
        {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 3, "name": "car"},
    ],
}  # fmt: skip
PERSONS = "<ref>person</ref><box>[[100, 100, 300, 400], [500, 500, 600, 800]]</box>"
DOGS = "<ref>dog</ref><box>[[0, 0, 100, 300]]</box>"
ALONE = "<ref>dog</ref><box>[[100, 100, 605, 900]]</box>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for image in COCO["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    return tmp_path


def coco(folder: Path, name: str = "instances.json", **changed) -> Path:
    (folder / name).write_text(json.dumps(COCO | changed))
    return folder / name


def run(source: Path, **options) -> Converted:
    destination = source.parent / f"out{len(list(source.parent.iterdir()))}"
    return convert(Conversion(source, destination, "official", **options))


def talks(done: Converted) -> list[tuple[str, str, str]]:
    """Picture, question and answer of every sample."""
    source = open_source(done.main)
    found = []
    for record in (source[index] for index in range(len(source))):
        picture = record.messages[0].content[0]
        assert isinstance(picture, Picture)
        found.append((Path(str(picture.source)).name, *(m.text.strip() for m in record.messages)))
    return found


def test_a_coco_picture_is_a_question_about_all_that_is_in_it(folder: Path):
    done = run(coco(folder))
    question = QUESTIONS["picture"]
    assert talks(done) == [
        ("street.jpg", question, f"{PERSONS}\n{DOGS}"),
        ("dog.jpg", question, ALONE),
    ]
    assert "crowds (iscrowd), left out: 1" in done.notes
    assert "pictures without annotation, left out: 1" in done.notes


def test_pictures_without_annotation_are_asked_about_on_demand(folder: Path):
    done = run(coco(folder), wording=Wording(empty=True, question="Find all of {categories}."))
    assert talks(done)[1] == ("empty.jpg", "Find all of person, dog, car.", NOTHING)


def test_a_set_in_which_nothing_is_marked_says_so(folder: Path):
    source = coco(folder, annotations=[])
    with pytest.raises(ValueError, match=r"gives a sample \(pictures without annotation.*: 3\)"):
        run(source)


def test_each_category_can_be_a_question_of_its_own(folder: Path):
    done = run(coco(folder), wording=Wording("category"))
    assert [answer for _, _, answer in talks(done)] == [PERSONS, DOGS, ALONE]
    assert talks(done)[1][1].endswith("this sentence describes: <ref>dog</ref>")
    asked = run(coco(folder), wording=Wording("category", "Where is the {category}?"))
    assert talks(asked)[0][1] == "Where is the person?"


@pytest.mark.parametrize(
    ("wording", "message"),
    [
        (("category", "Where?"), "lacks {category}"),
        (("picture", "Where is {category}?"), "goes with --samples category"),
        (("picture", " "), "is empty"),
        (("category", None, True), "--empty goes with --samples picture"),
    ],
)
def test_a_wording_that_cannot_be_filled_in_is_refused(wording: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Wording(*wording)


def test_captions_are_one_sample_each(folder: Path):
    captions = [
        {"id": 1, "image_id": 7, "caption": "A dog. "},
        {"id": 2, "image_id": 7, "caption": "One dog sits."},
    ]
    done = run(coco(folder, annotations=captions))
    question = QUESTIONS["caption"]
    assert talks(done) == [("dog.jpg", question, "A dog."), ("dog.jpg", question, "One dog sits.")]
    assert "pictures without caption, left out: 2" in done.notes
    with pytest.raises(ValueError, match="captions are a sample each"):
        run(folder / "instances.json", wording=Wording("category"))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"bbox": [10, 5, 0, 40]}, r"'dog.jpg': annotations\[0\] has the bbox .* not above 0"),
        ({"bbox": [10, 5, 95, 40]}, r"'dog.jpg': the box \[10, 5, 105, 45\] reaches beyond"),
        ({"bbox": None}, r"annotations\[0\] has the bbox None; four numbers"),
        ({"category_id": 5}, "has the category 5, which 'categories' lacks"),
        ({"image_id": 5}, r"json: annotations\[0\]: it belongs to the picture 5, which"),
    ],
)  # fmt: skip
def test_a_faulty_annotation_is_named_and_can_be_left_out(folder: Path, annotation, message: str):
    first, *others = COCO["annotations"]
    source = coco(folder, annotations=[first | annotation, *others])
    with pytest.raises(SampleError, match=message):
        run(source)
    done = run(source, skip_bad=1)
    assert (done.left_out, talks(done)[0][0]) == (1, "street.jpg")


def test_a_picture_of_another_size_than_annotated_is_a_fault(folder: Path):
    Image.new("RGB", (50, 25)).save(folder / "dog.jpg")
    with pytest.raises(SampleError, match=r"'dog\.jpg': the picture has 50x25 pixels, but 100x50"):
        run(coco(folder))


def test_a_missing_picture_names_its_path(folder: Path):
    (folder / "pictures").mkdir()
    with pytest.raises(SampleError, match=r"picture .*pictures/street.jpg does not exist"):
        run(coco(folder), root=folder / "pictures")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"annotations": {}}, "'annotations' is no list of objects"),
        ({"images": [{"id": 1}, {"id": 1}]}, "needs an 'id' of its own"),
        ({"categories": [{"id": 1, "name": "<box>"}]}, "'<box>' cannot be the name of a category"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(folder: Path, changed, message: str):
    with pytest.raises(ValueError, match=message):
        run(coco(folder, **changed), origin="coco")


def test_a_folder_without_any_known_files_says_what_was_looked_for(folder: Path):
    with pytest.raises(ValueError, match=r"is a folder without VOC's xml, LabelMe's json or Parq"):
        run(folder)
    with pytest.raises(ValueError, match="is a folder; give COCO's json file in it"):
        run(folder, origin="coco")


def labelme(folder: Path, name: str, *shapes: dict, **fields) -> Path:
    """A file as LabelMe 5 writes it."""
    (folder / "labels").mkdir(exist_ok=True)
    content = {
        "version": "5.4.1", "flags": {}, "imagePath": f"../{name}.jpg", "imageData": None,
        "imageHeight": 50, "imageWidth": 100,
        "shapes": [{"group_id": None, "description": "", "flags": {}} | shape for shape in shapes],
    }  # fmt: skip
    (folder / "labels" / f"{name}.json").write_text(json.dumps(content | fields, indent=2))
    return folder / "labels"


def shape(label: str, kind: str, *points: list[float]) -> dict:
    return {"label": label, "shape_type": kind, "points": list(points)}


def test_shapes_of_labelme_become_boxes(folder: Path):
    source = labelme(
        folder, "dog",
        shape("dog", "rectangle", [60.5, 45], [10, 5]),
        shape("tail", "polygon", [50, 10], [70, 5], [60, 30]),
        shape("eye", "circle", [20, 20], [23, 24]),
        shape("nose", "point", [20, 20]),
    )  # fmt: skip
    done = run(source)
    tail = "<ref>tail</ref><box>[[500, 100, 700, 600]]</box>"
    eye = "<ref>eye</ref><box>[[150, 300, 250, 500]]</box>"
    assert talks(done) == [("dog.jpg", QUESTIONS["picture"], f"{ALONE}\n{tail}\n{eye}")]
    assert "shapes of type point, which have no box, left out: 1" in done.notes


def test_labelme_saw_pictures_as_exif_turns_them(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 100)).save(folder / "dog.jpg", exif=exif)
    done = run(labelme(folder, "dog", shape("dog", "rectangle", [60.5, 45], [10, 5])))
    assert talks(done)[0][2] == ALONE


def test_coco_saw_pictures_as_they_are_stored(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # what is stored at the left is shown at the top
    Image.new("RGB", (100, 50)).save(folder / "dog.jpg", exif=exif)
    done = run(coco(folder))
    assert talks(done)[1][2] == "<ref>dog</ref><box>[[100, 100, 900, 605]]</box>"


def test_a_picture_inside_of_labelme_is_written_out(folder: Path):
    content = (folder / "dog.jpg").read_bytes()
    (folder / "dog.jpg").unlink()
    inside = base64.b64encode(content).decode()
    done = run(
        labelme(folder, "dog", shape("dog", "rectangle", [10, 5], [60.5, 45]), imageData=inside)
    )
    picture = open_source(done.main)[0].messages[0].content[0]
    assert isinstance(picture, Picture)
    assert Path(str(picture.source)).read_bytes() == content


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        (shape("dog", "star", [1, 2], [3, 4]), "'star'; known: rectangle"),
        (shape("dog", "rectangle", [1, 2]), r"shapes\[0\] has the points \[\[1, 2\]\]; two"),
        (shape(" ", "rectangle", [1, 2], [3, 4]), "' ' cannot be the name of a category"),
    ],
)  # fmt: skip
def test_a_faulty_shape_names_its_file(folder: Path, marked: dict, message: str):
    with pytest.raises(SampleError, match=f"dog.json: .*{message}"):
        run(labelme(folder, "dog", marked))


VOC = """<annotation><folder>VOC2012</folder><filename>dog.jpg</filename>
<size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>60.5</xmax><ymax>45</ymax></bndbox></object>
</annotation>"""


def voc(folder: Path, content: str) -> Path:
    (folder / "Annotations").mkdir()
    (folder / "JPEGImages").mkdir()
    (folder / "dog.jpg").rename(folder / "JPEGImages/dog.jpg")
    (folder / "Annotations/dog.xml").write_text(content)
    return folder / "Annotations"


def test_voc_counts_pixels_from_one_and_has_its_pictures_beside(folder: Path):
    annotations = voc(folder, VOC)
    for source in (annotations, annotations.parent):
        assert talks(run(source)) == [("dog.jpg", QUESTIONS["picture"], ALONE)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]>' + VOC, r"a document type \(a\) is refused"),
        (VOC[:-5], "not XML: no element found|not XML: unclosed token"),
        (VOC.replace("60.5", "wide"), "<xmax> is 'wide'; a number was expected"),
    ],
)
def test_dangerous_or_damaged_xml_is_refused(folder: Path, content: str, message: str):
    with pytest.raises(SampleError, match=rf"dog.xml: ({message})"):
        run(voc(folder, content))
