"""The packed group against each rollout on its own: same log-probabilities, same gradient."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM

from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.packing import Packed, pack, packed_logprobs
from sesa.sampling import Sampling, iid_sketches, parallel, sequential, sesa

G, K = 8, 3  # lists of 3, 3 and 2


def completions(groups):
    return [r.completion for group in groups for r in group.rollouts]


@pytest.fixture(scope="module", params=[1.0, 0.6])
def drawn(request, paths_lm):
    """(temperature, completions): two problems, G rollouts each in lists of K."""
    task, model, tokenizer = paths_lm
    cfg = Sampling(G, list_length=K, temperature=request.param)
    return request.param, completions(sequential(LocalEngine(model, tokenizer), task, task.problems, cfg, seed=5))


def test_a_list_is_one_sequence_and_owners_are_right(drawn):
    _, done = drawn
    sequences = pack(done)
    assert len(sequences) == 2 * math.ceil(G / K)
    order = [list(dict.fromkeys(o for o in s.owner if o >= 0)) for s in sequences]
    assert order == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9, 10], [11, 12, 13], [14, 15]]
    assert_packs(sequences, done)


def assert_packs(sequences, done):
    """Every completion stands once, behind exactly its prompt; nothing else is owned."""
    owned = [(s, o) for s in sequences for o in dict.fromkeys(s.owner) if o >= 0]
    assert sorted(o for _, o in owned) == list(range(len(done)))
    for s, o in owned:
        first, n = s.owner.index(o), s.owner.count(o)
        assert s.owner[first : first + n] == [o] * n
        assert tuple(s.ids[:first]) == done[o].prompt_ids
        written = [s.ends.get(t, s.ids[t]) for t in range(first, first + n)]
        assert tuple(written) == done[o].ids and written[:-1] == s.ids[first : first + n - 1]  # only the last may be read otherwise
    for s in sequences:
        assert len(s.ids) == len(s.owner) and s.owner[-1] >= 0


tokens = st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), tokens | st.just(()), tokens, tokens), min_size=1, max_size=8))
def test_pack_of_any_lists(plan):
    """Lists made by hand: each item goes on from the one before it, perhaps without its last token, after some more tokens, or starts anew."""
    done, unmerged = [], 0
    for goes_on, without_end, more, prompt, ids in plan:
        before = done[-1].prompt_ids + done[-1].ids if done else ()
        prompt = before[: -1 if without_end else None] + more if goes_on and done else prompt
        unmerged += not before or prompt[: len(before) - 1] != before[:-1] or len(prompt) < len(before)
        done.append(Completion("", True, prompt, ids, (0.0,) * len(ids)))
    sequences = pack(done)
    assert len(sequences) == unmerged
    assert_packs(sequences, done)


def test_packed_logprobs_equal_those_of_each_rollout_alone(drawn, paths_lm, reference):
    temperature, done = drawn
    model = paths_lm[1]
    with torch.no_grad():
        logprobs, owner, _ = packed_logprobs(model, pack(done), temperature)
        for i, c in enumerate(done):
            assert len(c.prompt_ids) > 3  # map, blank, what to list, line end
            alone = reference(model, c.prompt_ids, c.ids, temperature)
            torch.testing.assert_close(logprobs[owner == i].double(), alone, atol=1e-5, rtol=0)
            torch.testing.assert_close(logprobs[owner == i], torch.tensor(c.logprobs), atol=1e-5, rtol=0)


def test_only_what_a_completion_wrote_is_scored_in_order(drawn, paths_lm):
    temperature, done = drawn
    sequences = pack(done)
    with torch.no_grad():
        logprobs, owner, entropy = packed_logprobs(paths_lm[1], sequences, temperature)
    assert owner.tolist() == [o for s in sequences for o in s.owner if o >= 0]
    assert logprobs.shape == entropy.shape == owner.shape


def test_entropy_is_that_of_the_distribution_drawn_from(word_lm):
    model, _ = word_lm
    sequence = Packed([5, 6, 7, 8], [-1, 0, 0, 1])
    with torch.no_grad():
        entropy = packed_logprobs(model, [sequence], temperature=0.7).entropy
        p = torch.softmax(model(torch.tensor([[5, 6, 7, 8]])).logits[0].double() / 0.7, -1)
    by_hand = [-sum(x * math.log(x) for x in row.tolist() if x > 0) for row in p[:3]]
    assert entropy.tolist() == pytest.approx(by_hand, abs=1e-4)


def test_gradient_equals_that_of_separate_rows(drawn, paths_lm, reference):
    temperature, done = drawn
    together, apart = copy.deepcopy(paths_lm[1]), copy.deepcopy(paths_lm[1])
    advantage = torch.randn(len(done), generator=torch.Generator().manual_seed(0))
    logprobs, owner, _ = packed_logprobs(together, pack(done), temperature)
    (logprobs * advantage[owner]).sum().backward()
    for a, c in zip(advantage, done, strict=True):
        (a * reference(apart, c.prompt_ids, c.ids, temperature).sum()).backward()
    largest = max(p.grad.abs().max() for p in apart.parameters())
    assert largest > 0.1
    for (name, p), q in zip(together.named_parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5 * max(1, largest), rtol=1e-4, msg=name)


@pytest.mark.parametrize("sampler", [parallel, sesa, iid_sketches])
def test_independent_completions_are_not_merged(sampler, paths_lm):
    task, model, tokenizer = paths_lm
    groups = sampler(LocalEngine(model, tokenizer), task, task.problems, Sampling(6), seed=2)
    done = completions(groups)
    assert [s.ids for s in pack(done)] == [[*c.prompt_ids, *c.ids] for c in done]
    assert_packs(pack(done), done)
    sketches = [s.completion for group in groups for s in group.sketches]
    assert len(pack(sketches)) == {parallel: 0, sesa: 2, iid_sketches: 12}[sampler]


def test_cut_off_and_free_text_is_one_sequence_too(word_lm, paths_lm, reference):
    """Answers without an end, words without blanks between them: what was sampled is never tokenized again."""
    model, tokenizer = word_lm
    task = copy.copy(paths_lm[0])
    task.prompt = lambda problem, history=(): "w0\n" + "".join(f"{h}\n" for h in history)
    group = sequential(LocalEngine(model, tokenizer), task, task.problems[:1], Sampling(12, temperature=0.8), seed=0)
    done = completions(group)
    assert {c.stopped for c in done} == {True, False}
    assert len(pack(done)) == 1
    with torch.no_grad():
        logprobs, owner, _ = packed_logprobs(model, pack(done), 0.8)
        for i, c in enumerate(done):
            alone = reference(model, c.prompt_ids, c.ids, 0.8)
            torch.testing.assert_close(logprobs[owner == i].double(), alone, atol=1e-5, rtol=0)
            torch.testing.assert_close(logprobs[owner == i], torch.tensor(c.logprobs), atol=1e-5, rtol=0)


def test_an_end_that_the_next_prompt_does_not_show_is_scored_where_it_was_written(word_lm, reference):
    """Two items of a list, the first ended by token 2 where the list goes on with 7: one row, log-probabilities and gradients of two."""
    model = copy.deepcopy(word_lm[0])
    done = [Completion("", True, (5, 6), (8, 2), (0.0, 0.0)), Completion("", True, (5, 6, 8, 7, 9), (4, 2), (0.0, 0.0))]
    (sequence,) = pack(done)
    assert (sequence.ids, sequence.owner, sequence.ends) == ([5, 6, 8, 7, 9, 4, 2], [-1, -1, 0, 0, -1, 1, 1], {3: 2})
    scores = packed_logprobs(model, [sequence])
    alone = torch.cat([reference(model, c.prompt_ids, c.ids) for c in done])
    torch.testing.assert_close(scores.logprobs.double(), alone, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(x.sum(), list(model.parameters())) for x in (scores.logprobs, alone)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    same_prompt = [Completion("", True, (5, 6), (2,), (0.0,)), Completion("", True, (5, 6), (2,), (0.0,))]
    assert [s.ids for s in pack(same_prompt)] == [[5, 6, 2]] * 2  # two tokens at one place are not one row


def test_an_empty_completion_has_nothing_to_score():
    done = [Completion("", True, (5, 6)), Completion("", True, (5, 6, 7), (8,), (0.0,)), Completion("", True, (5, 6, 7, 8))]
    assert [(s.ids, s.owner) for s in pack(done)] == [([5, 6, 7, 8], [-1, -1, -1, 1])]
    assert pack(done[:1]) == []
    with pytest.raises(ValueError, match="completion 0 has no tokens"):
        pack([Completion("text", True)])


class Without(torch.nn.Module):
    """A model whose forward computes all logits, whatever is asked for."""

    def __init__(self, model):
        super().__init__()
        self.model, self.device = model, model.device

    def forward(self, input_ids, use_cache=None):
        return self.model(input_ids=input_ids, use_cache=use_cache)


@pytest.mark.parametrize("cap", [None, 0.5])
def test_logits_are_computed_only_where_they_are_needed(cap, drawn):
    """And they are those that a model gives that cannot leave any out, with a cap on the logits too."""
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            final_logit_softcapping=cap, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    computed, sequences = [], pack(drawn[1])
    model.lm_head.register_forward_hook(lambda module, arguments, output: computed.append(output.numel() // output.shape[-1]))
    ours, theirs = (packed_logprobs(m, sequences) for m in (model, Without(model)))
    written = sum(o >= 0 for s in sequences for o in s.owner)
    assert computed == [written, len(sequences) * (max(len(s.ids) for s in sequences) - 1)]
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(x.logprobs.sum(), list(model.parameters())) for x in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_greedy_logprobs_are_those_of_temperature_1(word_lm, reference):
    model, _ = word_lm
    with torch.no_grad():
        logprobs, _, _ = packed_logprobs(model, [Packed([5, 6, 7], [-1, 0, 0])], temperature=0)
        torch.testing.assert_close(logprobs.double(), reference(model, [5], [6, 7]), atol=1e-5, rtol=0)
