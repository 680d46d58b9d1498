"""Take single frames out of a video file, decoding no more of it than they need.

The packets are walked once without decoding: that gives every frame's time and the keyframes.
Frames then come in runs, each from the keyframe before them to the last one wanted in that group
of pictures; between runs the file is skipped. Frames that no other frame refers to are not decoded
either, unless they are wanted. A run that does not give its frames (a file whose index lies) is
replaced by decoding from the beginning.
"""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from PIL import Image

from internvl2.processing.fetch import MediaError, shorten
from internvl2.processing.pixels import first_bytes, not_media

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
MAX_SIDE = 8192
_ACCEPTED = "MP4, MOV, WebM, Matroska, AVI, MPEG-TS, GIF, animated WebP, or a folder of pictures"
_DROPS_SAFELY = ("h264", "mpeg4")
"""Codecs whose frames marked as not referred to are never referred to by any other frame."""
_EMPTY_PACKETS = 3
"""How many packets at the end of an AVI file may show no frame of their own (packed B-frames)."""
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


class Packet(NamedTuple):
    """One frame as it lies in the file."""

    pts: int
    dts: int
    is_keyframe: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """Every frame of a video, known without decoding."""

    packets: tuple[Packet, ...]
    """In file order, which is decoding order."""
    fps: float
    """Average over the file, as the official reader counts seconds."""
    seconds_per_tick: float
    has_times: bool = True
    """False: packets carry no times of showing (AVI), so frames can only be counted."""

    @property
    def num_frames(self) -> int:
        """How many frames the video shows."""
        return len(self.packets)

    def shown(self) -> list[int]:
        """Time stamps in the order of showing, in ticks."""
        return sorted(packet.pts for packet in self.packets)


class Run(NamedTuple):
    """Packets to decode one after the other: from a keyframe to the last frame wanted."""

    start: int
    stop: int
    wanted: frozenset[int]
    """Time stamps of the frames to keep."""


def plan(packets: Sequence[Packet], wanted: Sequence[int]) -> list[Run]:
    """The runs that give the frames with time stamps `wanted`, in file order."""
    positions = {packet.pts: position for position, packet in enumerate(packets)}
    keyframes = [position for position, packet in enumerate(packets) if packet.is_keyframe]
    groups: dict[int, set[int]] = {}
    for pts in set(wanted):
        before = bisect_right(keyframes, positions[pts]) - 1
        while before >= 0 and packets[keyframes[before]].pts > pts:
            before -= 1  # shown before its keyframe: it refers to the group before
        groups.setdefault(keyframes[before] if before >= 0 else 0, set()).add(pts)
    return [
        Run(start, max(positions[pts] for pts in group) + 1, frozenset(group))
        for start, group in sorted(groups.items())
    ]


class VideoFile:
    """An open video; frames are asked for by their index in the order of showing."""

    def __init__(
        self, container: "InputContainer", stream: "VideoStream", name: str, upright: bool
    ) -> None:
        self._container = container
        self._stream = stream
        self._name = name
        self._upright = upright
        self.timeline = _read_timeline(container, stream)
        if not self.timeline.num_frames:
            raise MediaError(f"{name} has no frames")

    def seconds(self, indices: Sequence[int]) -> list[float]:
        """When frames are shown, counted from the first one."""
        if not self.timeline.has_times:
            return [index / self.timeline.fps for index in indices]
        shown, tick = self.timeline.shown(), self.timeline.seconds_per_tick
        return [(shown[index] - shown[0]) * tick for index in indices]

    def take(
        self, indices: Sequence[int], keep: Callable[[Image.Image], Image.Image]
    ) -> dict[int, Image.Image]:
        """Frames by index, each handed through `keep` (which may shrink it) as soon as decoded."""
        taken: dict[int, Image.Image] = {}
        if self.timeline.has_times:
            index_of = {pts: index for index, pts in enumerate(self.timeline.shown())}
            pts_of = {index: pts for pts, index in index_of.items()}
            for run in plan(self.timeline.packets, [pts_of[index] for index in indices]):
                for frame in self._decode_run(run):
                    if frame.pts in run.wanted and frame.pts is not None:
                        taken[index_of[frame.pts]] = keep(self._image(frame))
            lost = {pts_of[index]: index for index in sorted(set(indices) - taken.keys())}
            taken |= self._search_through(lost, keep)
        missing = set(indices) - taken.keys()
        if missing:
            taken |= self._count_through(missing, keep)
        lost = sorted(set(indices) - taken.keys())
        if lost:
            raise MediaError(f"{self._name} is damaged: frame {lost[0]} cannot be decoded")
        return taken

    def _decode_run(self, run: Run) -> Iterator["VideoFrame"]:
        packets, stream = self.timeline.packets, self._stream
        first, last = packets[run.start], packets[run.stop - 1]
        drops = stream.codec_context.name in _DROPS_SAFELY
        for packet in self._packets_from(first):
            needed = packet.pts in run.wanted or not drops
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            yield from stream.codec_context.decode(packet)
            if packet.pts == last.pts:
                break
        else:
            return
        yield from stream.codec_context.decode(None)

    def _packets_from(self, first: Packet) -> Iterator["av.Packet"]:
        """Packets from `first` on; none where seeking does not find it."""
        for timestamp in dict.fromkeys((first.pts, first.dts)):
            self._container.seek(timestamp, stream=self._stream)
            started = False
            for packet in self._container.demux(self._stream):
                started = started or packet.pts == first.pts
                if started:
                    yield packet
                elif packet.pts is None or (packet.is_keyframe and packet.pts > first.pts):
                    break  # behind the one looked for
            if started:
                return

    def _search_through(
        self, indices: dict[int, int], keep: Callable[[Image.Image], Image.Image]
    ) -> dict[int, Image.Image]:
        """Frames by time from the beginning; for one that cannot be decoded, the next that can.

        A recording that was cut begins with frames whose keyframe is gone.
        """
        taken: dict[int, Image.Image] = {}
        waiting = sorted(indices)
        for frame in self._from_beginning() if waiting else ():
            while waiting and frame.pts is not None and frame.pts >= waiting[0]:
                taken[indices[waiting.pop(0)]] = keep(self._image(frame))
            if not waiting:
                break
        return taken

    def _from_beginning(self) -> Iterator["VideoFrame"]:
        self._stream.codec_context.skip_frame = "DEFAULT"
        self._container.seek(
            min(packet.dts for packet in self.timeline.packets), backward=True, stream=self._stream
        )
        yield from self._container.decode(self._stream)

    def _count_through(
        self, indices: set[int], keep: Callable[[Image.Image], Image.Image]
    ) -> dict[int, Image.Image]:
        """Frames by counting from the beginning, for files without usable times."""
        taken: dict[int, Image.Image] = {}
        index, frame, last = -1, None, max(indices)
        for index, frame in enumerate(self._from_beginning()):
            if index in indices:
                taken[index] = keep(self._image(frame))
            if index >= last:
                break
        if frame is not None and index < last <= index + _EMPTY_PACKETS:
            taken |= dict.fromkeys(indices - taken.keys(), keep(self._image(frame)))
        return taken

    def _image(self, frame: "VideoFrame") -> Image.Image:
        rgb = frame.reformat(format="rgb24")
        plane, size = rgb.planes[0], (rgb.width, rgb.height)
        # `frame.to_image()`, with one copy instead of three
        image = Image.frombuffer(
            "RGB", size, cast("bytes", plane), "raw", "RGB", plane.line_size, 1
        )
        turn = _TURNS.get(round(frame.rotation) % 360) if self._upright else None
        return image if turn is None else image.transpose(turn)


@contextmanager
def open_video(
    content: bytes | Path, name: str, *, upright: bool, max_pixels: int
) -> Iterator[VideoFile]:
    """The video in a file or in memory; whatever goes wrong inside is a `MediaError`."""
    import av
    from av.error import FFmpegError

    container_format = _container_format(content)
    if container_format is None:
        raise not_media(name, content, f"video; accepted: {_ACCEPTED}")
    source = io.BytesIO(content) if isinstance(content, bytes) else str(content)
    try:
        with av.open(source, "r", container_format, metadata_errors="replace") as container:
            stream = _checked_stream(container, name, max_pixels)
            _check_whole(stream, container_format, _size(content), name)
            yield VideoFile(container, stream, name, upright)
    except MediaError:
        raise
    except (
        FFmpegError,
        OSError,
        ValueError,
        IndexError,
        KeyError,
        EOFError,
        MemoryError,
        OverflowError,
        ZeroDivisionError,
    ) as error:
        reason = shorten(getattr(error, "strerror", None) or str(error), 120)
        raise MediaError(f"{name} is truncated or damaged: {reason}") from error


def _container_format(content: bytes | Path) -> str | None:
    """FFmpeg's name of the container, from the first bytes.

    FFmpeg is never left to guess: among what it would guess are playlists that open other files.
    """
    start = first_bytes(content, 189)
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "mov"
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    if start[:1] == b"G" and start[188:189] == b"G":
        return "mpegts"
    return None


def _checked_stream(container: "InputContainer", name: str, max_pixels: int) -> "VideoStream":
    if not container.streams.video:
        raise MediaError(f"{name} has no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    codec = context.name if context is not None else "unknown"
    if codec == "libdav1d":
        codec = "av1"
    if codec not in CODECS:
        raise MediaError(f"{name}: codec {codec} is not accepted; accepted: {', '.join(CODECS)}")
    width, height = context.width, context.height
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise MediaError(
            f"{name} has frames of {width}x{height} pixels; at most {MAX_SIDE} a side "
            f"and {max_pixels} in all"
        )
    stream.thread_type = "AUTO"
    context.options = {"max_pixels": str(max_pixels)}
    return stream


def _check_whole(stream: "VideoStream", container_format: str, size: int, name: str) -> None:
    """MP4 lists its frames with their places, so a file that was cut off shows at once."""
    entries = stream.index_entries
    if container_format == "mov" and len(entries):
        end = entries[len(entries) - 1].pos + entries[len(entries) - 1].size
        if end > size:
            raise MediaError(f"{name} is truncated: {size} bytes, but its last frame ends at {end}")


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _read_timeline(container: "InputContainer", stream: "VideoStream") -> Timeline:
    packets: list[Packet] = []
    has_times = container.format.name != "avi" or stream.codec_context.name == "mjpeg"
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        dts = packet.dts if packet.dts is not None else packet.pts
        pts = packet.pts if packet.pts is not None else dts
        has_times = has_times and packet.pts is not None
        packets.append(Packet(pts or 0, dts or 0, packet.is_keyframe))
    has_times = has_times and len({packet.pts for packet in packets}) == len(packets)
    tick = float(stream.time_base or 0)
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        span = (max(p.pts for p in packets) - min(p.pts for p in packets)) * tick if packets else 0
        rate = (len(packets) - 1) / span if span > 0 else 25.0
    return Timeline(tuple(packets), float(rate), tick, has_times)
