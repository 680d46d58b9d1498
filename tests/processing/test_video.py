"""Which frames stand for a video, and that they are exactly those frames."""

import base64
import io
import struct
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import pytest
from PIL import Image

from internvl2.processing.fetch import MediaError
from internvl2.processing.pixels import PictureOptions
from internvl2.processing.video import open_frames, read_frames, sample_indices
from internvl2.processing.video_file import Packet, plan

H264 = {"preset": "ultrafast", "bf": "3", "b_strategy": "0", "x264-params": "scenecut=0"}


def numbered(index, size):
    """A frame that shows its number in bits, coarse enough to survive any codec."""
    width, height = size
    bits = [(index >> bit) & 1 for bit in range(10)]
    stripe = np.repeat(np.array(bits, dtype=np.uint8) * 200 + 20, width // 10)
    return np.repeat(np.broadcast_to(stripe, (height, width))[:, :, None], 3, axis=2).copy()


def number_of(image):
    row = np.asarray(image.convert("L"))[image.height // 2]
    cell = len(row) // 10
    return sum(int(row[bit * cell + cell // 2] > 120) << bit for bit in range(10))


def encode(codec="libx264", form="mp4", options=None, *, frames=60, gop=12, times=None, **muxing):
    """A clip of numbered frames, 160x64, ten a second."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=form, options=muxing) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.gop_size = 160, 64, gop
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.options = H264 if codec == "libx264" else options or {}
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(numbered(index, (160, 64)), format="rgb24")
                frame.pts = index if times is None else times[index]
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


@pytest.fixture(scope="module")
def clip():
    return encode()


def numbers(source, count, **options):
    frames = read_frames(source, count, **options)
    assert [number_of(image) for image in frames.images] == list(frames.indices)
    return list(frames.indices)


def fault(source, count=8, **options):
    with pytest.raises(MediaError) as caught:
        read_frames(source, count, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("gop", [1, 2, 5, 12, 250])
def test_frames_are_exact_for_every_group_length(gop):
    content = encode(gop=gop)
    for count in (1, 3, 8, 60):
        assert numbers(content, count) == sample_indices(None, 10.0, 59, count)


@pytest.mark.parametrize(
    ("codec", "form", "options"),
    [
        ("mpeg4", "mp4", {"bf": "2"}),
        ("mpeg4", "avi", {"bf": "0"}),
        ("mjpeg", "avi", {}),
        ("libvpx", "webm", {"deadline": "realtime", "cpu-used": "8"}),
        ("libvpx-vp9", "matroska", {"deadline": "realtime", "cpu-used": "8"}),
        ("libx264", "matroska", {}),
        ("libx264", "mpegts", {}),
        ("libx264", "avi", {}),
        ("libx265", "mp4", {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3"}),
        ("libsvtav1", "mp4", {"preset": "13"}),
    ],
)
def test_every_accepted_codec_gives_exact_frames(codec, form, options):
    numbers(encode(codec, form, options, frames=40), 7)


def test_frames_equal_those_of_decoding_everything(clip):
    with av.open(io.BytesIO(clip)) as container:
        every = [np.asarray(frame.to_image()) for frame in container.decode(video=0)]
    frames = read_frames(clip, 9)
    for index, image in zip(frames.indices, frames.images, strict=True):
        assert (np.asarray(image) == every[index]).all()


def test_shrunk_frames_are_pillows_bicubic_of_whole_frames(clip):
    whole, small = read_frames(clip, 4), read_frames(clip, 4, shrink_to=28)
    for large, image in zip(whole.images, small.images, strict=True):
        assert image == large.resize((28, 28), Image.Resampling.BICUBIC)


def test_variable_frame_rate_counts_frames_and_keeps_their_times():
    times = [index * 2 if index < 30 else 60 + (index - 30) * 7 for index in range(60)]
    content = encode(times=times)
    assert numbers(content, 6) == sample_indices(None, 10.0, 59, 6)
    frames = read_frames(content, 6)
    assert frames.timestamps == pytest.approx([times[index] / 10 for index in frames.indices])


def test_bounds_are_in_seconds(clip):
    assert numbers(clip, 4, start=1.0, end=2.5) == sample_indices((1.0, 2.5), 10.0, 59, 4)
    assert min(numbers(clip, 4, start=3.0)) >= 30
    assert max(numbers(clip, 4, end=3.0)) <= 30


def test_a_start_within_the_last_frame_is_the_last_frame(clip):
    assert numbers(clip, 2, start=5.98) == [59, 59]
    assert "lasts 6.00 s" in fault(clip, start=6.0)


def test_the_animation_of_a_start_outside_is_not_called_damaged():
    frames = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(4)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert "damaged" not in fault(file.getvalue(), start=1.0)


def test_frames_whose_keyframe_was_cut_off_are_replaced_by_the_first_that_can_be_decoded():
    content = encode(form="mpegts")
    packet = 188
    frames = read_frames(content[packet * 12 :], 60)
    shown = [number_of(image) for image in frames.images]
    assert shown == sorted(shown)
    assert shown[0] == 12


def test_an_end_behind_the_video_is_its_end(clip):
    assert numbers(clip, 4, start=1.0, end=500.0) == sample_indices((1.0, 5.9), 10.0, 59, 4)


def test_a_video_shorter_than_the_count_repeats_frames():
    frames = read_frames(encode(frames=3), 8)
    assert list(frames.indices) == sample_indices(None, 10.0, 2, 8)
    assert len({id(image) for image in frames.images}) == len(set(frames.indices))


def test_a_plan_decodes_only_from_the_keyframe_to_the_last_wanted_frame():
    hour = [Packet(pts, pts, pts % 250 == 0) for pts in range(30 * 3600)]
    wanted = sample_indices(None, 30.0, len(hour) - 1, 8)
    runs = plan(hour, wanted)
    assert [sorted(run.wanted) for run in runs] == [[index] for index in wanted]
    assert all(hour[run.start].is_keyframe for run in runs)
    assert sum(run.stop - run.start for run in runs) < 8 * 250


def test_a_frame_shown_before_its_keyframe_is_planned_from_the_one_before():
    shown = [(0, True), (4, False), (2, False), (8, True), (6, False), (10, False)]
    packets = [Packet(pts, pts, key) for pts, key in shown]
    assert plan(packets, [6])[0].start == 0
    assert plan(packets, [10])[0].start == 3


@pytest.mark.parametrize(("turn", "size"), [(90, (64, 160)), (180, (160, 64)), (270, (64, 160))])
def test_rotation_metadata_is_applied_unless_official(clip, turn, size):
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    plain, turned = (
        struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        for a, b, c, d in ((1, 0, 0, 1), (cosine, sine, -sine, cosine))
    )
    at = clip.index(plain, clip.index(b"tkhd"))
    content = clip[:at] + turned + clip[at + 36 :]
    upright = read_frames(content, 1).images[0]
    stored = read_frames(content, 1, options=PictureOptions(official=True)).images[0]
    assert stored.size == (160, 64)
    assert upright.size == size
    assert upright == stored.rotate(-turn, expand=True)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_an_animation_is_a_video(form):
    frames = [Image.fromarray(numbered(index, (160, 16))) for index in range(20)]
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=200, **options)
    content = buffer.getvalue()
    assert numbers(content, 5) == sample_indices(None, 5.0, 19, 5)
    assert numbers(content, 3, start=1.0, end=2.0) == sample_indices((1.0, 2.0), 5.0, 19, 3)
    assert read_frames(content, 5).timestamps[1] == pytest.approx(0.2 * numbers(content, 5)[1])


def test_a_folder_is_a_video_in_natural_order(tmp_path):
    for index in range(12):
        Image.fromarray(numbered(index, (160, 16))).save(tmp_path / f"frame_{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert numbers(tmp_path, 6) == [0, 2, 4, 6, 7, 9]
    assert numbers(str(tmp_path), 4) == sample_indices(None, 1.0, 11, 4)


def test_decoded_frames_are_a_video():
    arrays = tuple(numbered(index, (160, 16)) for index in range(10))
    assert numbers(arrays, 5) == numbers(tuple(map(Image.fromarray, arrays)), 5)


@pytest.mark.parametrize("count", [5, 10, 12])
def test_decoded_frames_are_opened_as_they_are_read(count):
    arrays = [numbered(index, (160, 16)) for index in range(10)]
    mixed = [Image.fromarray(each) if n % 3 else each for n, each in enumerate(arrays)]
    read = read_frames(mixed, count)
    opened = open_frames(mixed, count)
    assert [one.size for one in opened] == [image.size for image in read.images]
    assert [one.decode().tobytes() for one in opened] == [i.tobytes() for i in read.images]
    kept = [mixed[index] if index % 3 == 0 else None for index in read.indices]
    assert all(one.pixels is given for one, given in zip(opened, kept, strict=True))


def test_decoded_frames_that_cannot_be_read_cannot_be_opened():
    good, small = np.zeros((4, 6, 3), np.uint8), PictureOptions(max_pixels=23)
    for frames, options, count, bounds in (
        ((np.zeros((2, 2, 3)),), None, 8, {}),
        ((np.zeros((0, 2, 3), np.uint8),), None, 8, {}),
        ((), None, 8, {}),
        ((good,), small, 8, {}),
        ((Image.fromarray(good),), small, 8, {}),
        ((good,), None, 0, {}),
        ((good,), None, 1025, {}),
        ((good,), None, 8, {"start": 1.0}),
    ):
        with pytest.raises(MediaError) as caught:
            open_frames(frames, count, options=options, **bounds)
        assert str(caught.value) == fault(frames, count, options=options, **bounds)


def test_a_video_opens_from_a_path_and_a_data_url(clip, tmp_path):
    path = tmp_path / "clip.bin"
    path.write_bytes(clip)
    assert numbers(path, 3) == numbers(
        "data:video/mp4;base64," + base64.b64encode(clip).decode(), 3
    )


def test_arrays_that_are_not_frames_are_refused():
    assert "float64[2, 2, 3]" in fault((np.zeros((2, 2, 3)),))
    assert "is empty" in fault(())


@pytest.mark.parametrize(
    ("bounds", "what"),
    [
        ({"start": 3.0, "end": 2.0}, "start 3 s is not before its end 2 s"),
        ({"start": 2.0, "end": 2.0}, "is not before"),
        ({"start": -1.0}, "must be 0 or more"),
        ({"end": 0.0}, "must be above 0"),
        ({"start": float("nan")}, "must be 0 or more"),
        ({"start": 6.5}, "lasts 6.00 s; a start of 6.5 s is outside it"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(clip, bounds, what):
    assert what in fault(clip, **bounds)


def test_more_frames_than_any_context_holds_are_refused(clip):
    assert "at most 1024" in fault(clip, 1025)


def test_no_frames_at_all_cannot_be_asked_for(clip):
    assert "0 frames" in fault(clip, 0)


def test_bounds_mean_nothing_in_a_folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "has no times" in fault(tmp_path, start=1.0)


def test_an_empty_folder_is_an_error(tmp_path):
    assert "without pictures" in fault(tmp_path)


def test_a_missing_or_empty_file_is_an_error(tmp_path):
    (tmp_path / "a.mp4").touch()
    assert "does not exist" in fault(tmp_path / "b.mp4")
    assert "is empty" in fault(tmp_path / "a.mp4")


@pytest.mark.parametrize("content", [b"hello", b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0"])
def test_text_and_playlists_are_not_videos(content):
    assert "is not a video" in fault(content)
    assert "looks like text" in fault(content)


def test_a_file_with_sound_only_has_no_video_stream():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    assert "has no video stream" in fault(buffer.getvalue())


def test_a_codec_outside_the_list_is_refused():
    assert "codec" in fault(encode("mpeg2video", "matroska", frames=3))


def test_frames_beyond_the_pixel_limit_are_refused(clip):
    assert "160x64" in fault(clip, options=PictureOptions(max_pixels=160 * 64 - 1))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_an_error(clip, share):
    assert "truncated or damaged" in fault(clip[: int(len(clip) * share)])


def test_a_file_cut_off_behind_its_index_is_an_error(tmp_path):
    path = tmp_path / "clip.mp4"
    content = encode(movflags="faststart")
    assert numbers(content, 4) == sample_indices(None, 10.0, 59, 4)
    path.write_bytes(content[:-500])
    assert "is truncated" in fault(path)


def test_damaged_files_give_frames_or_are_refused(clip):
    rng = np.random.default_rng(3)
    for _ in range(120):
        content = bytearray(clip)
        for position in rng.integers(8, len(content), rng.integers(1, 40)):
            content[position] = rng.integers(256)
        with suppress(MediaError):
            assert len(read_frames(bytes(content), 3, shrink_to=14).images) == 3


def test_decoded_frames_that_are_no_more_than_asked_for_are_all_taken():
    frames = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    assert read_frames(frames, 3).indices == (0, 1, 2)
    assert read_frames(frames, 8).indices == (0, 1, 2)
    assert read_frames(frames, 2).indices == (0, 1)
