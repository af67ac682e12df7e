"""How much texts differ, and how likely they are, where no verifier says what is right.

Of words: the share of n-grams that are new (`distinct_n`), and how well a text is foretold by the others (`self_bleu`). Of vectors: the mean
distance of all pairs (`mean_distance`); the vectors are of words (`tfidf`), or of meaning, by a language model at hand (`embeddings`). What the
model gives for a text after a prompt (`log_likelihoods`) is a proxy of quality, and no more: what is likely is often dull.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from sesa.packing import autocast

MEANS = 'This sentence: "{}" means in one word: "'
BATCH = 64  # texts computed at once


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float:
    """Distinct n-grams over all n-grams of these texts, each a list of its tokens; no n-gram reaches from one text into the next.
    Nan if no text has n tokens.  (Li et al. 2016, arXiv 1510.03055.)

    It falls as texts grow in number or length, whatever they say: compare at equal tokens.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"an n-gram has at least 1 token, not {n}")
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def mean_distance(vectors: np.ndarray) -> float:
    """Mean cosine distance, 1 - cos, over all pairs of these vectors, (n, d): 0 if all point one way, 1 if they are orthogonal. A vector
    of zeros, as of a text without words, is at a distance of 1 from all.

    Raises:
        ValueError: fewer than two vectors.
    """
    vectors = np.asarray(vectors, dtype=float)
    n = len(vectors)
    if vectors.ndim != 2 or n < 2:
        raise ValueError(f"distances need at least two vectors, (n, d), not an array of shape {vectors.shape}")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    # The sum of all pairs' cosines, from the sum of the vectors: |sum u|^2 = sum |u|^2 + 2 sum of pairs.
    pairs = (np.sum(units.sum(0) ** 2) - np.sum(units**2)) / 2
    return float(1 - pairs / (n * (n - 1) / 2))


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """BLEU of each text, a list of its tokens, with all others as references; the mean. 1: each stands among the others word by word.
    (Zhu et al. 2018, arXiv 1802.01886.)  n-grams of 1 to 4 tokens, of a shorter text to its length; counts of 0 become 0.1, but where not one token is
    shared it is 0.

    Raises:
        ValueError: fewer than two texts, or one without tokens.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # a second to import

    if len(texts) < 2 or not all(texts):
        raise ValueError("self-BLEU needs at least two texts, and a token in each")
    how = {"smoothing_function": SmoothingFunction().method1, "auto_reweigh": True}
    return float(np.mean([sentence_bleu([*texts[:i], *texts[i + 1 :]], text, **how) for i, text in enumerate(texts)]))


def tfidf(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """A vector per text, a list of its tokens: how often each token occurs in it, the rarer among these texts the more weight. (texts, tokens)

    Raises:
        ValueError: there is not one token.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import

    return TfidfVectorizer(analyzer=lambda text: text).fit_transform(texts).toarray()


@torch.inference_mode()
def last_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> np.ndarray:
    """What the model makes of each prompt: its last hidden state after the last token, from which it goes on. (prompts, hidden size)"""
    rows = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    states = np.zeros((len(rows), model.config.get_text_config().hidden_size))
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # so that little is padded
    for start in range(0, len(rows), BATCH):
        these = by_length[start : start + BATCH]
        with autocast(model):  # attention is causal: what pads a row behind its end does no harm
            found = model.base_model(input_ids=_padded([rows[i] for i in these]).to(model.device), use_cache=False).last_hidden_state
        states[these] = found[torch.arange(len(these)), [len(rows[i]) - 1 for i in these]].float().cpu().numpy()
    return states


def embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """A vector per text, (texts, hidden size): what the model makes ready to say when it is to put the text in one word, after `MEANS`.
    (Jiang et al. 2023, arXiv 2307.16645: no training needed. The mean over a text's own hidden states fails in small models.)

    reference: texts whose mean vector is taken off; all vectors of a model point much the same way, and this is what they have in common.
    """
    vectors = last_states(model, tokenizer, [MEANS.format(text.strip()) for text in (*texts, *reference)])
    return vectors[: len(texts)] - (vectors[len(texts) :].mean(0) if len(reference) else 0)


@torch.inference_mode()
def log_likelihoods(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, texts: Sequence[str]) -> list[np.ndarray]:
    """Of every text, the natural logarithm of the probability of each of its tokens after the prompt and those before; without its end.

    The prompt is computed once. Raises ValueError if it is empty.
    """
    head = tokenizer.encode(prompt, add_special_tokens=False)
    if not head:
        raise ValueError("an empty prompt: there is no token to start from")
    found = []
    for start in range(0, len(texts), BATCH):
        tails = [tokenizer.encode(text, add_special_tokens=False) for text in texts[start : start + BATCH]]
        cache = DynamicCache()
        with autocast(model):
            if head[1:]:
                model.base_model(input_ids=torch.tensor([head[:-1]], device=model.device), past_key_values=cache)
                cache.batch_select_indices(torch.zeros(len(tails), dtype=torch.long, device=model.device))
            # Causal attention and padding on the right: what pads a row changes nothing before it.
            rows = _padded([head[-1:] + tail for tail in tails]).to(model.device)
            logits = model(input_ids=rows[:, :-1], past_key_values=cache).logits.float() if rows.shape[1] > 1 else None
        for r, tail in enumerate(tails):
            logprobs = logits[r, : len(tail)].log_softmax(-1)[range(len(tail)), tail] if tail else torch.zeros(0)
            found.append(logprobs.double().cpu().numpy())
    return found


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
