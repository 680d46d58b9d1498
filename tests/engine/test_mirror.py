"""Steps that are told keep copies of sequences equal to the sequences themselves."""

import pickle

from internvl2.config import RotaryConfig
from internvl2.engine.kv_cache import KVCache
from internvl2.engine.mirror import Listener, Teller
from internvl2.engine.scheduler import Chunk, Scheduler
from internvl2.engine.sequence import SamplingParams, Sequence

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True, temperature=1.0, repetition_penalty=1.1)


def scheduler(num_blocks: int = 64) -> Scheduler:
    cache = KVCache(num_blocks, 4, RotaryConfig(theta=10000.0))
    return Scheduler(cache, max_context=80, max_sequences=4, max_batch_tokens=16)


def sequence_of(number: int, prompt) -> Sequence:
    return Sequence(number, prompt, PARAMS, frozenset({98}), seed=7 + number, leading_ids=(99,))


def state(chunk: Chunk) -> tuple:
    sequence = chunk.sequence
    return (
        *(chunk.start, chunk.stop, chunk.samples),
        *(sequence.id, sequence.token_ids, sequence.blocks, sequence.params, sequence.seed),
        *(sequence.stop_token_ids, sequence.leading_ids, sequence.prompt_length),
        *(sequence.prompt.media, sequence.prompt.tiles.shape, sequence.num_generated),
    )


def run(deciding: Scheduler, sequences: list[Sequence]) -> tuple[int, list[int]]:
    """Steps until all have ended, each compared; preemptions, and bytes of each note."""
    teller, listener, preempted, sizes = Teller(), Listener(), 0, []
    for sequence in sequences:
        deciding.add(sequence)
    while deciding.has_work:
        step = deciding.schedule()
        for sequence in step.preempted:
            preempted += 1
            if teller.forget(sequence.id):
                listener.forget(sequence.id)
        told = pickle.dumps(teller.note(step))
        deciding.launch(step)
        sizes.append(len(told))
        heard = listener.step(pickle.loads(told))
        assert [state(c) for c in heard.prefills] == [state(c) for c in step.prefills]
        assert [state(c) for c in heard.decodes] == [state(c) for c in step.decodes]
        for chunk in step.chunks:
            sampled = chunk.samples
            deciding.complete(chunk)
            if sampled and chunk.sequence.append(number_of(chunk)) is not None:
                deciding.finish(chunk.sequence, "length")
                assert teller.forget(chunk.sequence.id)
                assert listener.forget(chunk.sequence.id).id == chunk.sequence.id
    return preempted, sizes


def number_of(chunk: Chunk) -> int:
    return (31 * chunk.stop + chunk.sequence.id) % 90


def test_copies_follow_prompts_in_chunks_and_written_tokens(make_prompt):
    prompts = [make_prompt(list(range(30))), make_prompt([5, 6], [(1, 3)]), make_prompt([7])]
    preempted, _ = run(scheduler(), [sequence_of(n, prompt) for n, prompt in enumerate(prompts)])
    assert preempted == 0


def test_a_preempted_sequence_is_told_anew(make_prompt):
    prompts = [make_prompt(list(range(n, n + 12))) for n in range(4)]
    preempted, _ = run(scheduler(20), [sequence_of(n, prompt) for n, prompt in enumerate(prompts)])
    assert preempted > 0


def test_pixels_and_known_tokens_are_not_told(make_prompt):
    prompt = make_prompt(list(range(50)), [(1, 2)])
    _, sizes = run(scheduler(), [sequence_of(0, prompt)])
    assert max(sizes) < prompt.tiles.nbytes / 10
    assert max(sizes[-5:]) < 300


def test_a_sequence_that_was_never_computed_is_not_known():
    assert not Teller().forget(3)


def test_a_step_behind_unread_tokens_is_told_as_such(make_prompt):
    deciding, teller, listener = scheduler(), Teller(), Listener()
    deciding.add(sequence_of(0, make_prompt([5, 6, 7], [])))
    deciding.waiting[0].params = SamplingParams(max_tokens=20, ignore_eos=True)
    step = deciding.schedule()
    first = listener.step(teller.note(step))
    deciding.launch(step)
    deciding.complete(step.chunks[0])
    step.chunks[0].sequence.append(8)
    writing = deciding.schedule()
    listener.step(teller.note(writing))
    deciding.launch(writing)
    following = deciding.follow(writing)
    assert following is not None
    heard = listener.step(teller.note(following))
    assert heard.follows
    assert state(heard.decodes[0]) == state(following.decodes[0])
    assert heard.decodes[0].sequence is first.prefills[0].sequence
