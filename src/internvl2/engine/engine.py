"""Many conversations at once: load a model, ask, stream, batch, from any thread or event loop.

with Engine.load("OpenGVLab/InternVL2-2B") as engine:
    chat = engine.chat()
    print(chat.ask("What is the total?", images=["receipt.jpg"]).text)
"""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from collections.abc import Sequence as Rows
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from internvl2 import device as devices
from internvl2.checkpoint.config_files import read_config
from internvl2.checkpoint.hub import EMBEDDED, locate
from internvl2.engine.answer_text import AnswerText
from internvl2.engine.batch import Answered, Batch, Work
from internvl2.engine.batch_sizes import sizes_up_to
from internvl2.engine.blank_prompts import shortest_prompt, tower_prompts
from internvl2.engine.chat import Chat
from internvl2.engine.device_cutter import device_cutter
from internvl2.engine.engine_options import EngineOptions
from internvl2.engine.follower import StoredModel
from internvl2.engine.graphs import CudaRecorder, Recorder
from internvl2.engine.kv_cache import KVCache
from internvl2.engine.memory import MemoryPlan, plan
from internvl2.engine.model_runner import RunnerOptions
from internvl2.engine.opening import open_model, runner_of
from internvl2.engine.requests import Failure, Mailbox, Request, check_prompt
from internvl2.engine.scheduler import Scheduler
from internvl2.engine.sequence import Answer, Output, SamplingParams, Sequence
from internvl2.engine.step_loop import Inbox, StepLoop
from internvl2.engine.tensor_parallel import Team, choose_places
from internvl2.model.internvl import InternVL
from internvl2.model.low_bit import quantization_of
from internvl2.processing.conversation import Conversation, Message
from internvl2.processing.pixels import PictureOptions
from internvl2.processing.processor import EncodeOptions, Processor
from internvl2.processing.prompt import Prompt
from internvl2.processing.tile_cache import TileCache


class Engine:
    """One model, its cache, and everybody who asks it."""

    def __init__(
        self,
        model: InternVL,
        processor: Processor,
        options: EngineOptions | None = None,
        recorder: Recorder | None = None,
        team: Team | None = None,
    ) -> None:
        """An engine for a model that is in place; `recorder` is for devices without CUDA graphs.

        With a `team` that is the first process's share of a model.
        """
        options = options or EngineOptions()
        self.model = model.eval()
        self._team = team
        weight = model.decoder.embedding.weight
        request = options.memory_request(weight.device)
        request = replace(request, gathers=model.decoder.kernels.paged_decode is None)
        self.plan: MemoryPlan = plan(
            model.config,
            weight.dtype,
            weight.device,
            devices.free_memory(weight.device) if team is None else team.free_memory(),
            request,
            is_loaded=True,
            quantization=quantization_of(model),
            share=None if team is None else team.share,
        )
        rotary = model.config.decoder.rotary
        cache = KVCache(
            self.plan.num_blocks, options.block_size, rotary, reuse=options.prefix_reuse
        )
        self.scheduler = Scheduler(
            cache,
            max_context=self.plan.max_context,
            max_sequences=request.max_sequences,
            max_batch_tokens=request.max_batch_tokens,
        )
        runner_options = RunnerOptions(
            num_blocks=self.plan.num_blocks,
            block_size=options.block_size,
            max_sequences=request.max_sequences,
            longest=self.scheduler.longest,
            vision_bytes=options.vision_cache_bytes,
            vision_tiles=request.vision_tiles * self.num_processes,
        )
        if request.records:
            recorder = CudaRecorder(weight.device)
        self.processor = processor
        if request.cuts:
            cutter = device_cutter(weight.device, processor.pictures.threads)
            self.processor = processor if cutter is None else processor.cutting_with(cutter)
        self._most_tiles = runner_options.vision_tiles
        self.runner = runner_of(model, runner_options, recorder, team)
        self._loop = StepLoop(self.scheduler, self.runner)
        self._ids = itertools.count()
        self._leading_ids = _leading_ids(processor)

    @classmethod
    def load(  # noqa: PLR0913
        cls,
        model: str | Path = EMBEDDED,
        *,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        options: EngineOptions | None = None,
        adapter: str | Path | None = None,
        pictures: PictureOptions | None = None,
        quantize: str | None = None,
        tensor_parallel: int = 1,
    ) -> "Engine":
        """An engine for a model directory, a hub id, or a short name; for nano without any.

        An adapter, by directory or hub id, is merged in; an adapter as `model` brings its base.
        `quantize` ("fp8", "int8", "int4") holds the decoder's matrices in fewer bits.
        `tensor_parallel` divides the model over so many GPUs, a process each.
        """
        located = locate(model, adapter, revision=revision)
        directory = located.directory
        options = options or EngineOptions()
        config = read_config(directory)
        places = choose_places(tensor_parallel, device)
        number_format = devices.choose_dtype(places[0], config.dtype, dtype)
        tile_cache = TileCache(options.tile_cache_bytes)
        processor = Processor.from_directory(
            directory, config, pictures=pictures, tile_cache=tile_cache
        )
        stored = StoredModel(directory, number_format, located.adapter, quantize)
        with ExitStack() as on_error:
            opened = open_model(stored, places, options.memory_request(places[0]))
            on_error.callback(opened.close)
            engine = cls(opened.model, processor, options, team=opened.team)
            on_error.pop_all()
        return engine

    @property
    def num_processes(self) -> int:
        """How many divide the model, each with a device of its own."""
        return 1 if self._team is None else self._team.share.size

    @property
    def place(self) -> str:
        """The device that computes, or how many of which kind."""
        device = self.model.decoder.embedding.weight.device
        return str(device) if self._team is None else f"{self.num_processes} x {device.type}"

    def encode(
        self, request: Conversation | Prompt, options: EncodeOptions | None = None
    ) -> Prompt:
        """The prompt of a conversation, within what this engine can hold."""
        if isinstance(request, Prompt):
            return request
        _check_conversation(request)
        options = options or EncodeOptions()
        longest = self.scheduler.longest - 1
        wanted = options.max_context
        limit = longest if wanted is None else min(wanted, longest)
        return self.processor.encode(request, options=replace(options, max_context=limit))

    def add(
        self,
        request: Conversation | Prompt,
        params: SamplingParams | None = None,
        options: EncodeOptions | None = None,
    ) -> int:
        """Queues a request and gives its id; `step` then returns its outputs."""
        prompt = self.encode(request, options)
        return self.submit(prompt, params or SamplingParams(), None).id

    def step(self) -> list[Output]:
        """Runs one step and gives the outputs of requests that came through `add`."""
        return self._loop.step()

    @property
    def has_work(self) -> bool:
        """Whether a further `step` could give something."""
        return self._loop.has_work

    def start_thread(self) -> None:
        """From now on a thread of the engine answers what is submitted."""
        self._loop.start_thread()

    def abort(self, sequence_id: int) -> None:
        """Ends a request; its blocks are free when the running step is done."""
        self._loop.abort(sequence_id)

    def answer(
        self,
        request: Conversation | Prompt,
        params: SamplingParams | None = None,
        options: EncodeOptions | None = None,
    ) -> Answer:
        """The whole answer to one request."""
        return self.generate([request], params, options)[0]

    def stream(
        self,
        request: Conversation | Prompt,
        params: SamplingParams | None = None,
        options: EncodeOptions | None = None,
    ) -> Iterator[Output]:
        """One answer as it is written; leaving the loop early ends the request."""
        return self._outputs(self.encode(request, options), params or SamplingParams())

    def generate(
        self,
        requests: Rows[Conversation | Prompt],
        params: SamplingParams | Rows[SamplingParams] | None = None,
        options: EncodeOptions | None = None,
    ) -> list[Answer]:
        """The answers to many requests, computed together; the first error ends all."""
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams) and len(params) != len(requests):
            raise ValueError(
                f"there are {len(params)} params but {len(requests)} requests; "
                "give one for all or one for each"
            )
        answers: dict[int, Answer] = {}
        with closing(self.answers(requests, params, options)) as ended:
            for answered in ended:
                if answered.answer is None:
                    raise answered.error or AssertionError("neither an answer nor an error")
                answers[answered.index] = answered.answer
        return [answers[index] for index in range(len(requests))]

    def answers(
        self,
        requests: Iterable[Conversation | Prompt],
        params: SamplingParams | Rows[SamplingParams] | None = None,
        options: EncodeOptions | None = None,
    ) -> Generator[Answered]:
        """How each of many requests ends, as soon as it does; errors come in place of answers.

        Requests are read, and their pictures prepared, only a little ahead of the model.
        """
        work = Work(lambda request: self.encode(request, options), self.submit, self._loop)
        ahead = 2 * self.scheduler.max_sequences
        yield from Batch(work, params or SamplingParams(), ahead).run(requests)

    async def astream(
        self,
        request: Conversation | Prompt,
        params: SamplingParams | None = None,
        options: EncodeOptions | None = None,
    ) -> AsyncIterator[Output]:
        """One answer as it is written; concurrent callers share the engine's steps."""
        prompt = await asyncio.to_thread(self.encode, request, options)
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Output | Failure] = asyncio.Queue()

        def deliver(item: Output | Failure) -> None:
            # A loop that has ended has nobody left who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(inbox.put_nowait, item)

        self._loop.start_thread()
        sequence = self.submit(prompt, params or SamplingParams(), deliver)
        try:
            while True:
                item = await inbox.get()
                if isinstance(item, Failure):
                    raise item.error
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self.abort(sequence.id)

    def warm_up(self, params: SamplingParams | None = None) -> None:
        """Has steps of every batch size and the tower's small runs recorded: no answer waits then.

        For requests like those to come: steps that draw tokens are recorded apart. Where nothing is
        recorded nothing happens.
        """
        if not self.runner.runs_ahead:
            return
        like = replace(params or SamplingParams(), max_tokens=4, min_tokens=0, ignore_eos=True)
        most = self.scheduler.max_sequences
        for rows in sizes_up_to(most):
            inbox: Inbox = Inbox()
            prompts = [shortest_prompt(self.model.config)] * min(rows, most)
            running = {self.submit(prompt, like, inbox.put).id for prompt in prompts}
            while running:
                item = self._loop.wait(inbox)
                if isinstance(item, Failure):
                    raise item.error
                if item.finish_reason is not None:
                    running.remove(item.sequence_id)
        one = replace(like, max_tokens=1)
        for prompt in tower_prompts(self.model.config, self._most_tiles, self.scheduler.longest):
            self.answer(prompt, one)

    def chat(
        self,
        system: str | None = None,
        params: SamplingParams | None = None,
        options: EncodeOptions | None = None,
    ) -> Chat:
        """A conversation that remembers its turns."""
        return Chat(self, system, params, options)

    def close(self) -> None:
        """Ends all requests and the engine's thread; the engine takes no more."""
        self._loop.close()
        if self._team is not None:
            self._team.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, prompt: Prompt, params: SamplingParams, mailbox: Mailbox | None) -> Sequence:
        """Queues a prompt whose outputs go to a mailbox, or to `step` where there is none."""
        check_prompt(prompt, self.model.config)
        sequence = Sequence(
            id=next(self._ids),
            prompt=prompt,
            params=params,
            stop_token_ids=self._stop_token_ids(params),
            seed=random.getrandbits(63) if params.seed is None else params.seed,
            leading_ids=self._leading_ids,
        )
        text = AnswerText(self.processor.tokenizer.stream(), params.stop, params.include_stop)
        self._loop.submit(Request(sequence, text, mailbox))
        return sequence

    def _stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        vocab = self.model.config.decoder.vocab_size
        if params.stop_token_ids is None:
            return frozenset(i for i in self.processor.stop_token_ids if i < vocab)
        for token in params.stop_token_ids:
            if token >= vocab:
                raise ValueError(f"stop_token_ids has {token}; the model has {vocab} tokens")
        return frozenset(params.stop_token_ids)

    def _outputs(self, prompt: Prompt, params: SamplingParams) -> Iterator[Output]:
        inbox: Inbox = Inbox()
        sequence = self.submit(prompt, params, inbox.put)
        try:
            while True:
                item = self._loop.wait(inbox)
                if isinstance(item, Failure):
                    raise item.error
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            self.abort(sequence.id)


def _check_conversation(request: object) -> None:
    """Catches what is easily passed for a conversation: its text, one message, or OpenAI's form."""
    if not isinstance(request, Rows) or isinstance(request, str):
        raise ValueError(
            f"a conversation is a list of Message, not a {type(request).__name__}: "
            "[Message.user(text, *pictures)]"
        )
    for message in request:
        if not isinstance(message, Message):
            raise ValueError(
                f"a conversation has a {type(message).__name__} where a Message belongs; "
                "from_openai and from_opengvlab read other forms"
            )


def _leading_ids(processor: Processor) -> tuple[int, ...]:
    """The token that the official generation begins with, unseen.

    With embedded prompts transformers 4.37.2 starts from `bos_token_id` of the language model's
    config; Qwen2 names `<|endoftext|>` there and Qwen3, run by a newer version, has none.
    """
    kind = processor.config.decoder.kind
    if kind == "qwen3":
        return ()
    tokenizer = processor.tokenizer
    leading = tokenizer.id_of("<|endoftext|>") if kind == "qwen2" else tokenizer.bos_id
    return () if leading is None else (leading,)
