"""Options that several commands share, as dataclasses; their docstrings are the help texts.

Nothing heavy is imported here, so that `--help` answers at once. `check()` refuses values that make
no sense before a model is loaded for minutes.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from internvl2.config import Quantization

if TYPE_CHECKING:
    from internvl2.engine.sequence import SamplingParams
    from internvl2.processing.conversation import Video
    from internvl2.processing.pixels import PictureOptions
    from internvl2.processing.processor import EncodeOptions

MOST_TILES, MOST_FRAMES = 128, 1024
"""More than any context of the family holds."""


def as_typed(metavar: str, *choices: str) -> PrimitiveConstructorSpec[Any]:
    """How a text option is read: None where it is not given, else its words, "None" among them."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar if not choices else f"{{{','.join(choices)}}}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
        choices=choices or None,
    )


Dtype = Literal["bfloat16", "float16", "float32", "bf16", "fp16", "fp32"]

ModelName = Annotated[str, arg(aliases=("-m", "--model-name-or-path")), as_typed("NAME|PATH")]
"""`--model`, in PaddleMIX's spelling too."""

AdapterName = Annotated[str | None, as_typed("DIR|HUB_ID")]
"""`--adapter`, which PEFT's format is read from."""


@dataclass(frozen=True)
class LoadOptions:
    """Where the model runs and where it comes from."""

    device: Annotated[str | None, as_typed("DEVICE")] = None
    """cpu, cuda, cuda:1, npu or mps; the best one there is unless given."""
    adapter: AdapterName = None
    """Adapter that is merged into the model while it is read, in PEFT's format."""
    dtype: Annotated[Dtype | None, as_typed("", *get_args(Dtype))] = None
    """Number format of weights and arithmetic; the checkpoint's unless given."""
    quantize: Annotated[Quantization | None, as_typed("", *get_args(Quantization))] = None
    """Holds the decoder's matrices in fewer bits: int8 and int4 anywhere, fp8 on Hopper GPUs."""
    revision: Annotated[str | None, as_typed("REVISION")] = None
    """Branch, tag or commit of a checkpoint on the hub."""
    offline: bool = False
    """Use only what was downloaded before."""
    max_context: Annotated[int | None, arg(metavar="TOKENS")] = None
    """Most tokens of prompt and answer together; less takes less memory."""
    no_graphs: bool = False
    """Launches every kernel by itself on an NVIDIA GPU, instead of CUDA graphs; slower."""
    tensor_parallel: Annotated[int, arg(metavar="N")] = 1
    """GPUs that the model is divided over: the first N there are."""

    def check(self) -> None:
        """Refuses a context without room, and one device where several are wanted."""
        require_within("--max-context", self.max_context, 1)
        require_within("--tensor-parallel", self.tensor_parallel, 1)
        if self.tensor_parallel > 1 and self.device is not None and ":" in self.device:
            raise ValueError(
                f"--device {self.device} is one device, but --tensor-parallel "
                f"{self.tensor_parallel} takes several: leave it out, and choose GPUs with "
                "CUDA_VISIBLE_DEVICES"
            )


@dataclass(frozen=True)
class MediaOptions:
    """How pictures and videos are shown to the model."""

    max_tiles: int | None = None
    """Most tiles that a picture is cut into, the thumbnail not counted; the model's own number
    unless given: 12 for the released ones."""
    frames: Annotated[int, arg(aliases=("--num-frames",))] = 8
    """How many frames of a video are looked at, one tile each."""
    start: Annotated[float | None, arg(metavar="SECONDS")] = None
    """Look at the video from this second on."""
    end: Annotated[float | None, arg(metavar="SECONDS")] = None
    """Look at the video up to this second."""
    fit: bool = False
    """Cut pictures into fewer tiles where the prompt would be too long, instead of an error."""
    official_pictures: bool = False
    """Read odd pictures as the official code: no EXIF rotation, alpha dropped, 16 bit clipped."""
    preprocess: Literal["exact", "fast"] = "exact"
    """fast resizes pictures in half the time; of a photo 3 values in 10,000 differ, by 1 of 255."""
    thinking: bool = False
    """Let an InternVL3.5 model think before it answers."""

    def check(self) -> None:
        """Refuses values that no picture or video can meet."""
        require_within("--max-tiles", self.max_tiles, 1, MOST_TILES)
        require_within("--frames", self.frames, 1, MOST_FRAMES)
        for name, second in (("--start", self.start), ("--end", self.end)):
            if second is not None and not (math.isfinite(second) and second >= 0):
                raise ValueError(f"{name} is {second}; it must be a second from 0 on")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"--start {self.start:g} is not before --end {self.end:g}")

    def video(self, source: str) -> "Video":
        """A video by path or URL, to be looked at as these options say."""
        from internvl2.processing.conversation import Video

        return Video(source, num_frames=self.frames, start=self.start, end=self.end)

    def picture_options(self) -> "PictureOptions":
        """How the processor opens and resizes pictures."""
        from internvl2.processing.pixels import PictureOptions

        return PictureOptions(official=self.official_pictures, arithmetic=self.preprocess)

    def encoding(self) -> "EncodeOptions":
        """What the processor is asked for."""
        from internvl2.processing.processor import EncodeOptions

        return EncodeOptions(max_tiles=self.max_tiles, fit=self.fit, thinking=self.thinking)


@dataclass(frozen=True)
class SamplingOptions:
    """How the answer's tokens are chosen; without any of these, the most probable one each time."""

    max_tokens: int = 1024
    """Most tokens to write."""
    min_tokens: int = 0
    """Fewest tokens to write."""
    temperature: float = 0.0
    """0 takes the most probable token; more is more varied."""
    top_p: float = 1.0
    """Only the most probable tokens that together have this share of the probability."""
    top_k: int = 0
    """Only the k most probable tokens; 0 is all."""
    min_p: float = 0.0
    """Only tokens with at least this share of the most probable token's probability."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were written before less probable."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token written before."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token once for every time it was written."""
    no_repeat_ngram_size: int = 0
    """No run of so many tokens is written twice; 0 is no limit."""
    seed: Annotated[int | None, arg(metavar="INT")] = None
    """The same seed gives the same answer."""
    stop: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    """A text that ends the answer."""

    def params(self) -> "SamplingParams":
        """The engine's form of these options; refuses values that make no sense."""
        from internvl2.engine.sequence import SamplingParams

        return SamplingParams(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            seed=self.seed,
            stop=self.stop,
        )


def require_within(name: str, value: float | None, lowest: int, highest: int | None = None) -> None:
    """Refuses a number outside the bounds; None is a number that was not given."""
    if value is not None and value < lowest:
        raise ValueError(f"{name} is {value}; it must be at least {lowest}")
    if value is not None and highest is not None and value > highest:
        raise ValueError(f"{name} is {value}; it can be at most {highest}")
