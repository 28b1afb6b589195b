"""Continuing texts with a cache gives what reading everything anew for each token gives, whatever the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm.growth import Deepen, Upcycle, Widen, grow
from growlm.inference import generation
from growlm.inference.generation import generate
from growlm.inference.precision import cast_weights
from growlm.inference.sampling import Sampling
from growlm.model.keyed_rng import keyed_generator
from growlm.model.kv_cache import KeyValueCache
from growlm.runtime.errors import RunError
from tests.model.drawn_parts import drawn_parts
from tests.model.tiny_models import EXPERTS, build, logits_of, tiny_config

GREEDY = Sampling(temperature=0)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}

sizes = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 2),
        "heads": st.sampled_from([(1, 1), (4, 4), (4, 2), (4, 1), (6, 3)]),
        "head_dim": st.sampled_from([2, 4, 8]),
        "d_model": st.sampled_from([6, 16]),
        "experts": st.sampled_from([{}, EXPERTS, {"num_experts": 3, "top_k": 3}]),
        "tie_embeddings": st.booleans(),
    }
)
shapes = sizes.flatmap(
    lambda shape: drawn_parts(shape["head_dim"], shape["n_layers"]).map(lambda parts: shape | parts)
)
prompt_lists = st.lists(
    st.lists(st.integers(0, 28), min_size=1, max_size=12), min_size=1, max_size=5
)


def model_of(shape, dtype=torch.float64):
    shape = dict(shape)
    n_heads, n_kv_heads = shape.pop("heads")
    config = tiny_config(n_heads=n_heads, n_kv_heads=n_kv_heads, **shape.pop("experts"), **shape)
    return build(config, std=0.3, dtype=dtype)


def uncached(model, prompt, count):
    """Greedy continuation, everything read anew for each token, and the logits it was chosen by."""
    tokens, rows = list(prompt), []
    for _ in range(count):
        rows.append(logits_of(model, torch.tensor([tokens]))[0, -1])
        tokens.append(int(rows[-1].argmax()))
    return tokens[len(prompt) :], torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, prompts=prompt_lists, count=st.integers(1, 6))
def test_cached_tokens_are_those_without_a_cache(shape, prompts, count):
    model = model_of(shape)

    continuations = generate(model, prompts, count, GREEDY)

    expected = [uncached(model, prompt, count)[0] for prompt in prompts]
    assert [c.tokens for c in continuations] == expected


@settings(max_examples=30, deadline=None)
@given(
    shape=shapes,
    prompts=prompt_lists,
    count=st.integers(1, 6),
    chunk=st.integers(1, 20),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_cached_logits_are_those_without_a_cache(shape, prompts, count, chunk, dtype):
    """Prompts padded on the left, read in chunks of any length, then token by token."""
    model = model_of(shape, dtype)
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts])
    texts = [prompt + uncached(model, prompt, count)[0] for prompt in prompts]
    rows = torch.tensor([[7] * int(pad) + t for pad, t in zip(padding, texts, strict=True)])
    cache = KeyValueCache(model.config, rows.shape[1], padding, rows.shape[1] - 1)

    with torch.no_grad():
        for part in rows[:, :longest].split(chunk, dim=1):
            stream = model.decode_step(part, cache)
        found = [model.compute_logits(stream, model.head_weight, model.head_bias)]
        for step in range(longest, rows.shape[1] - 1):
            stream = model.decode_step(rows[:, step : step + 1], cache)
            found.append(model.compute_logits(stream, model.head_weight, model.head_bias))

    found = torch.stack(found, dim=1)
    for row, text, prompt in zip(found, texts, prompts, strict=True):
        expected = logits_of(model, torch.tensor([text[:-1]]))[0, len(prompt) - 1 :]
        assert (row - expected).abs().max() <= TOLERANCE[dtype] * max(1, expected.abs().max())


@settings(max_examples=30, deadline=None)
@given(
    heads=st.sampled_from([(4, 4), (4, 2)]),
    padding=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    room=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_attention_in_half_precision_is_that_in_double(heads, padding, room, seed):
    """Through a prompt and a few tokens, in a cache that is nearly full or mostly empty."""
    config = tiny_config(n_heads=heads[0], n_kv_heads=heads[1], head_dim=8)
    generator = torch.Generator().manual_seed(seed)
    length = max(padding) + 2
    caches = [KeyValueCache(config, length + 4 + room, torch.tensor(padding)) for _ in range(2)]
    for time in (length, 1, 1, 1, 1):
        query, key, value = (
            torch.randn(len(padding), n, time, 8, generator=generator).bfloat16()
            for n in (heads[0], heads[1], heads[1])
        )
        for cache in caches:
            cache.extend(time, query)
        found = caches[0].layers[0].attend(query, key, value).double()
        expected = caches[1].layers[0].attend(query.double(), key.double(), value.double())
        real = expected if time == 1 else expected[:, :, max(padding) :]
        assert (found[:, :, -real.shape[2] :] - real).abs().max() <= 0.03


@settings(max_examples=25, deadline=None)
@given(
    shape=shapes,
    prompts=prompt_lists,
    sampling=st.builds(
        Sampling,
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_k=st.sampled_from([0, 3]),
        top_p=st.sampled_from([1.0, 0.8]),
    ),
    seed=st.integers(0, 100),
)
def test_a_continuation_does_not_depend_on_its_batch(shape, prompts, sampling, seed):
    model = model_of(shape)
    stops = set(range(5))

    together = generate(model, prompts, 12, sampling, seeds=seed, stop_tokens=stops)

    alone = [
        generate(model, [prompt], 12, sampling, seeds=seed, stop_tokens=stops)[0]
        for prompt in prompts
    ]
    assert together == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["default", "llama"])
@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "moe"])
def test_every_dtype_has_its_path(family, experts, dtype):
    """Aligned widths, so that experts are grouped where they can be; under autocast, and cast once."""
    config = tiny_config(family, d_model=32, d_ff=64, head_dim=8, n_kv_heads=2, **experts)
    model = build(config, dtype=torch.float32)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        texts = generate(model, prompts, 20, GREEDY)
        again = generate(model, prompts, 20, GREEDY)
    cast = generate(cast_weights(model, dtype), prompts, 20, GREEDY)
    assert texts == again
    assert all(len(text.tokens) == 20 for text in texts + cast)
    if dtype == torch.float32:
        assert texts == cast == [generate(model, [p], 20, GREEDY)[0] for p in prompts]


def test_routers_keep_their_precision():
    config = tiny_config(router_bias_step=0.1, **EXPERTS)
    model = build(config, dtype=torch.float32)
    routers = [block.feed_forward.router.weight.clone() for block in model.blocks]
    cast_weights(model, torch.bfloat16)
    for block, router in zip(model.blocks, routers, strict=True):
        assert torch.equal(block.feed_forward.router.weight, router)
        assert block.feed_forward.selection_bias.dtype == torch.float32
        assert block.feed_forward.experts.up.dtype == torch.bfloat16
    assert model.embedding.weight.dtype == torch.bfloat16
    assert (
        cast_weights(model, torch.float64).blocks[0].feed_forward.router.weight.dtype
        == torch.float64
    )


@pytest.fixture(scope="module")
def model():
    return build(tiny_config(), std=0.3)


def sample(model, count=8, prompt=(3, 1, 4), **options):
    sampling = Sampling(temperature=options.pop("temperature", 1.0))
    return generate(model, [list(prompt)], count, sampling, **options)[0]


def test_the_seed_alone_decides(model):
    before = torch.get_rng_state()
    first = sample(model, seeds=1)
    torch.rand(3)
    assert sample(model, seeds=1) == first
    assert any(sample(model, seeds=seed) != first for seed in range(2, 6))
    torch.set_rng_state(before)


def test_a_longer_sample_begins_with_the_shorter(model):
    assert sample(model, 30, seeds=2).tokens[:8] == sample(model, 8, seeds=2).tokens


def test_generation_leaves_the_global_random_state_alone(model):
    before = torch.get_rng_state()
    sample(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_prompts_with_seeds_of_their_own_differ(model):
    texts = generate(model, [[3, 1, 4]] * 4, 12, Sampling(), seeds=[0, 1, 2, 0])
    assert texts[0] == texts[3]
    assert len({tuple(text.tokens) for text in texts}) == 3


def test_no_token_beyond_the_tokenizer(model):
    drawn = {
        token for seed in range(20) for token in sample(model, seeds=seed, num_token_ids=5).tokens
    }
    assert drawn == set(range(5))
    greedy = sample(model, temperature=0, num_token_ids=5)
    assert set(greedy.tokens) <= set(range(5))


def test_a_bias_of_the_head_is_cut_with_the_head():
    model = build(tiny_config(embedding={"head_bias": True}))
    with torch.no_grad():
        model.head_bias[3] = 1e3
        model.head_bias[7] = 1e6
    assert set(sample(model, temperature=0, num_token_ids=5).tokens) == {3}
    assert set(sample(model, temperature=0).tokens) == {7}


def test_it_ends_before_a_stop_token(model):
    whole = sample(model, 20, seeds=3).tokens
    stopped = sample(model, 20, seeds=3, stop_tokens={whole[4], 99})
    assert stopped.tokens == whole[: whole.index(whole[4])]
    assert stopped.finish_reason == "stop"


def test_it_ends_at_what_was_asked_for_or_can_be_read(model):
    assert sample(model).finish_reason == "length"
    full = sample(model, 1000)
    assert len(full.tokens) == model.config.max_seq_len - 3
    assert full.finish_reason == "max_seq_len"
    exact = sample(model, model.config.max_seq_len - 3)
    assert exact.finish_reason == "length"
    nothing = sample(model, prompt=[1] * model.config.max_seq_len)
    assert (nothing.tokens, nothing.finish_reason) == ([], "max_seq_len")
    assert sample(model, 0).tokens == []
    assert generate(model, [], 4) == []


def test_a_short_prompt_goes_on_where_a_long_one_is_full(model):
    limit = model.config.max_seq_len
    short, long = generate(model, [[1], [2] * (limit - 2)], 40, GREEDY)
    assert (len(short.tokens), short.finish_reason) == (40, "length")
    assert (len(long.tokens), long.finish_reason) == (2, "max_seq_len")
    assert short == sample(model, 40, prompt=[1], temperature=0)


@pytest.mark.parametrize("prompt", [[], [1] * 65])
def test_what_cannot_be_read_is_refused(model, prompt):
    with pytest.raises(ValueError, match="must be 1 to 64"):
        sample(model, prompt=prompt)


def test_tokens_are_told_as_they_come(model):
    told = {0: [], 1: []}
    prompts = [[3, 1, 4], [1, 5]]
    texts = generate(
        model, prompts, 9, Sampling(), on_token=lambda row, token: told[row].append(token)
    )
    assert [told[0], told[1]] == [text.tokens for text in texts]


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_model_of_nan_is_an_error_in_words(temperature):
    broken = build(tiny_config())
    with torch.no_grad():
        broken.final_norm.weight[0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        sample(broken, temperature=temperature)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_kept(training):
    model = build(tiny_config()).train(training)
    sample(model)
    assert model.training is training


def test_ended_rows_leave_the_batch(model, monkeypatch):
    """Half of eight texts end at once: the other half goes on as a batch of four."""
    prompts = torch.randint(29, (8, 4), generator=keyed_generator("rows")).tolist()
    firsts = [generate(model, [prompt], 1, GREEDY)[0].tokens[0] for prompt in prompts]
    stops = set(firsts[:4])
    alone = [generate(model, [p], 16, GREEDY, stop_tokens=stops)[0] for p in prompts]
    sizes = []
    read_on = generation._DecodingBatch.decode_step
    monkeypatch.setattr(
        generation._DecodingBatch,
        "decode_step",
        lambda self, t: sizes.append(len(t)) or read_on(self, t),
    )
    assert generate(model, prompts, 16, GREEDY, stop_tokens=stops) == alone
    assert all(size <= 4 for size in sizes)


def test_long_prompts_are_read_in_parts(model, monkeypatch):
    prompts = [[1, 2, 3] * 9, [4, 5]]
    whole = generate(model, prompts, 8, GREEDY)
    monkeypatch.setattr(generation, "PREFILL_CHUNK_TOKENS", 10)
    lengths = []
    read_on = type(model).decode_step
    monkeypatch.setattr(
        type(model),
        "decode_step",
        lambda self, t, c: lengths.append(t.shape[1]) or read_on(self, t, c),
    )
    assert generate(model, prompts, 8, GREEDY) == whole
    assert lengths == [5, 5, 5, 5, 5, 2] + [1] * 7


def test_a_cache_is_no_longer_than_it_was_made():
    model = build(tiny_config())
    cache = KeyValueCache(model.config, 3, torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        model.decode_step(torch.tensor([[1, 2, 3]]), cache)
        with pytest.raises(ValueError, match="4 tokens in a cache of 3 slots"):
            model.decode_step(torch.tensor([[4]]), cache)


def test_a_grown_model_continues_as_the_small_one():
    small = build(tiny_config(), std=0.3)
    big = grow(small, [Upcycle(num_experts=4), Widen(scale_factor=2), Deepen(extra_layers=2)])
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6]]
    assert generate(big, prompts, 12, GREEDY) == generate(small, prompts, 12, GREEDY)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor"
)  # dynamo's own
def test_a_compiled_model_continues_as_it_does_without():
    model = build(tiny_config(), std=0.3, dtype=torch.float32)
    expected = generate(model, [[3, 1, 4]], 12, GREEDY)
    model.compile_blocks = True
    model.train()
    model.loss(torch.randint(29, (2, 9))).backward()
    assert generate(model, [[3, 1, 4]], 12, GREEDY) == expected


def test_a_full_row_with_learned_positions_does_not_end_the_others():
    config = tiny_config(embedding={"positions": "learned", "position_offset": 2}, max_seq_len=16)
    model = build(config, std=0.3, dtype=torch.float64)
    prompts = [[1] * 10, [2, 3, 4], [5, 6, 7]]
    together = generate(model, prompts, 20, GREEDY)
    alone = [generate(model, [prompt], 20, GREEDY)[0] for prompt in prompts]
    assert together == alone
    assert [len(each.tokens) for each in together] == [6, 13, 13]
