"""The path task: its tree and its bytes, its prior and maps in closed form, its language, and a grader that takes any text."""

import hashlib
import re
import shutil
from collections import Counter
from dataclasses import replace
from itertools import product
from math import sqrt

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sesa.models import word_tokenizer
from sesa.runs import DataError
from sesa.tasks import paths
from sesa.tasks.paths import Map, PathConfig, PathTask, Prior, load_tree, make_maps, marginal, obeying, without_replacement, zipf_prior

TASK = PathTask()  # 8 x 6 x 6
FULL = load_tree()
HEAD, TAIL = 0.02, (5e-4, 4e-3)  # the defaults of `make_maps`


def leaves(tree) -> list[str]:
    return [f"{p}/{c}/{d}" for p, cities in tree.items() for c, districts in cities.items() for d in districts]


def within(count: float, n: int, p: float) -> bool:
    """A count of n independent events of probability p lies within 4 standard errors (wrong once in 16,000)."""
    return abs(count - n * p) <= 4 * sqrt(n * p * (1 - p))


# ------------------------------------------------------------------------------------------------------------------ data


def test_full_tree_is_as_data_readme_counts_it():
    sizes = {p: len(cities) for p, cities in FULL.items()}
    assert (len(FULL), sum(sizes.values()), len(leaves(FULL))) == (27, 292, 2282)
    assert (min(sizes.values()), max(sizes.values())) == (sizes["Qinghai"], sizes["Guangdong"]) == (2, 21)
    roomy = [p for p, cities in FULL.items() if sum(len(ds) >= 5 for ds in cities.values()) >= 8]
    assert sorted(roomy) == (
        "Anhui Fujian Gansu Guangdong Guangxi Hebei Heilongjiang Henan Hubei Hunan Jiangsu Jiangxi Liaoning "
        "Shaanxi Shandong Shanxi Sichuan Zhejiang"
    ).split()


def test_names_are_as_data_readme_says():
    assert len(set(leaves(FULL))) == 2282
    assert len({path.split("/")[2] for path in leaves(FULL)}) == 2039
    assert all(re.fullmatch("[A-Z][a-z]+", name) for path in leaves(FULL) for name in path.split("/"))
    assert {"Hunan/Shaoyang/Wugang", "Henan/Pingdingshan/Wugang", "Hunan/Changsha/Changsha"} <= set(leaves(FULL))
    cities = Counter(c for province in FULL.values() for c in province)
    assert {c for c, n in cities.items() if n > 1} == {"Fuzhou", "Suzhou", "Taizhou", "Yichun", "Yulin"}


@pytest.mark.parametrize("sizes", [(8, 6, 6), (18, 8, 5), (1, 1, 1), (3, 2, 4)])
def test_balanced_tree_is_balanced_and_a_part_of_the_full_one(sizes):
    tree = load_tree(*sizes)
    assert len(tree) == sizes[0]
    assert {len(cities) for cities in tree.values()} == {sizes[1]}
    assert {len(districts) for cities in tree.values() for districts in cities.values()} == {sizes[2]}
    places = {path: i for i, path in enumerate(leaves(FULL))}
    order = [places[path] for path in leaves(tree)]
    assert order == sorted(order)  # the file's order


@pytest.mark.parametrize("sizes", [(19, 8, 5), (28, 1, 1), (1, 22, 1), (1, 1, 100)])
def test_too_large_a_tree_is_refused(sizes):
    with pytest.raises(DataError, match="ask for fewer"):
        load_tree(*sizes)


@pytest.mark.parametrize("sizes", [(8, None, None), (None, 6, 6), (8, 6, None), (0, 6, 6), (8, 6, -1)])
def test_partial_or_empty_sizes_are_refused(sizes):
    with pytest.raises(ValueError) as e:
        load_tree(*sizes)
    assert not isinstance(e.value, DataError)  # the data are not to blame


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of data/ that may be damaged."""
    folder = shutil.copytree(paths.DATA.parent, tmp_path / "data")
    monkeypatch.setattr(paths, "DATA", folder / paths.DATA.name)
    assert load_tree() == FULL
    return folder


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_one_flipped_bit_is_found(copy, position):
    content = bytearray(paths.DATA.read_bytes())
    content[position] ^= 1
    paths.DATA.write_bytes(content)
    with pytest.raises(DataError, match=r"china_divisions.csv has SHA-256 .*SHA256SUMS says ea38c4179cd4.*git checkout data/"):
        load_tree()


@pytest.mark.parametrize("missing", ["china_divisions.csv", "SHA256SUMS"])
def test_a_missing_file_is_named(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(DataError, match=f"{missing}.*git checkout data/"):
        load_tree()


def test_damaged_checksums_are_refused(copy):
    content = bytearray((copy / "SHA256SUMS").read_bytes())
    for bit in (1, 128):  # of the first digit; with 128 it is no UTF-8
        (copy / "SHA256SUMS").write_bytes(bytes([content[0] ^ bit]) + content[1:])
        with pytest.raises(DataError, match="git checkout data/"):
            load_tree()


def test_a_table_without_a_checksum_is_refused(copy):
    (copy / "SHA256SUMS").write_text(f"{hashlib.sha256(b'').hexdigest()}  another.csv\n")
    with pytest.raises(DataError, match="SHA256SUMS says nothing"):
        load_tree()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text + text.splitlines()[1] + "\n",  # a path twice
        lambda text: text.replace("Hebei,Shijiazhuang,", "Hebei,Shijia/zhuang,", 1),  # a slash in a name
        lambda text: text.replace("Hebei,Shijiazhuang,", "Hebei,,", 1),
        lambda text: text.replace("province,city", "province,town", 1),
        lambda text: text.splitlines()[0] + "\n",  # no rows
        lambda text: "",
    ],
)
def test_a_table_that_is_no_tree_is_refused_whatever_its_checksum(copy, damage):
    paths.DATA.write_text(damage(paths.DATA.read_text()))
    (copy / "SHA256SUMS").write_text(f"{hashlib.sha256(paths.DATA.read_bytes()).hexdigest()}  {paths.DATA.name}\n")
    with pytest.raises(DataError, match="git checkout data/"):
        load_tree()


# ----------------------------------------------------------------------------------------------------------------- prior


@pytest.mark.parametrize("tree", [TASK.tree, FULL], ids=["balanced", "full"])
@pytest.mark.parametrize("exponent", [0, 1, 2.5])
def test_every_node_has_exactly_zipf_children(tree, exponent):
    prior = zipf_prior(tree, exponent, seed=5)
    assert list(prior.paths) == leaves(tree)
    assert prior.p.sum() == pytest.approx(1, abs=1e-12)
    mass: dict[str, float] = {"": 0.0}
    for path, p in zip(prior.paths, prior.p, strict=True):
        names = path.split("/")
        for level in range(4):
            place = "/".join(names[:level])
            mass[place] = mass.get(place, 0.0) + p
    children = {"": list(tree)} | {p: [f"{p}/{c}" for c in cs] for p, cs in tree.items()}
    children |= {f"{p}/{c}": [f"{p}/{c}/{d}" for d in ds] for p, cs in tree.items() for c, ds in cs.items()}
    for node, below in children.items():
        weights = [rank**-exponent for rank in range(1, len(below) + 1)]
        conditional = sorted((mass[child] / mass[node] for child in below), reverse=True)
        np.testing.assert_allclose(conditional, np.array(weights) / sum(weights), rtol=1e-10)


def test_ranks_are_shuffled_anew_at_every_node():
    p = zipf_prior(TASK.tree, 1.0, seed=0).p.reshape(8, 6, 6)
    assert len({tuple(np.argsort(districts)) for province in p for districts in province}) > 40  # of 48 nodes, 720 orders
    first = Counter(int(zipf_prior(TASK.tree, 1.0, seed).p.reshape(8, 36).sum(1).argmax()) for seed in range(400))
    assert all(within(first[i], 400, 1 / 8) for i in range(8))


def test_prior_is_fixed_by_its_seed():
    a, b, c = (zipf_prior(TASK.tree, 2.5, seed) for seed in (1, 1, 2))
    assert np.array_equal(a.p, b.p) and not np.array_equal(a.p, c.p)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_marginals_are_sums_over_what_is_below(level):
    prior = marginal(TASK.prior, level)
    expected = TASK.prior.p.reshape(8, 6, 6).sum(axis=tuple(range(level, 3))).ravel()
    np.testing.assert_allclose(prior.p, expected, rtol=1e-12)
    assert list(prior.paths) == list(dict.fromkeys("/".join(path.split("/")[:level]) for path in TASK.prior.paths))
    again = marginal(prior, 1)
    np.testing.assert_allclose(again.p, marginal(TASK.prior, 1).p, rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------------ maps


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_treasures_lie_in_the_stated_bands(seed, treasures):
    probability = dict(zip(TASK.prior.paths, TASK.prior.p, strict=True))
    maps = make_maps(TASK.prior, 9, seed, treasures)
    assert [m.id for m in maps] == [f"map{i}" for i in range(9)]
    for i, m in enumerate(maps):
        assert len(m.treasures) == treasures
        heads = [t for t in m.treasures if probability[t] > HEAD]
        assert len(heads) == (i % 2 == 0)
        assert all(TAIL[0] <= probability[t] <= TAIL[1] for t in m.treasures - set(heads))


def test_every_path_of_a_band_is_as_likely_a_treasure():
    """2,000 maps: the rest of the treasures (5 per two maps of 3) spread evenly over the tail, the 1,000 heads over the head."""
    found = Counter(t for m in make_maps(TASK.prior, 2000, seed=1) for t in m.treasures)
    head = [path for path, p in zip(TASK.prior.paths, TASK.prior.p, strict=True) if p > HEAD]
    tail = [path for path, p in zip(TASK.prior.paths, TASK.prior.p, strict=True) if TAIL[0] <= p <= TAIL[1]]
    assert all(within(found[path], 1000, 1 / len(head)) for path in head)
    assert all(within(found[path], 5000, 1 / len(tail)) for path in tail)
    assert set(found) == {*head, *tail}


def test_maps_are_fixed_by_their_seed():
    assert make_maps(TASK.prior, 8, 3) == make_maps(TASK.prior, 8, 3) != make_maps(TASK.prior, 8, 4)
    assert make_maps(TASK.prior, 8, 3)[:5] == make_maps(TASK.prior, 5, 3)  # more maps only append


@pytest.mark.parametrize("bands", [{"head": 0.9}, {"tail": (1e-12, 1e-11)}, {"tail": (4e-3, 5e-4)}, {"treasures": 289}])
def test_impossible_bands_are_refused(bands):
    with pytest.raises(ValueError, match="change `head`, `tail` or the prior's exponent"):
        make_maps(TASK.prior, 4, 0, **bands)


def test_a_tail_that_reaches_into_the_head_breaks_no_promise():
    """Either refused, or still: `treasures` distinct ones a map, of which every second map has just one in the head."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    prior = Prior(("A/A/A", "A/A/B", "A/A/C", "A/A/D"), p)
    try:
        maps = make_maps(prior, 40, seed=0, treasures=2, head=0.15, tail=(0.0, 1.0))
    except ValueError:
        return
    assert {len(m.treasures) for m in maps} == {2}
    assert {len(m.treasures - {"A/A/D"}) for m in maps[::2]} == {1}


# ------------------------------------------------------------------------------------------------- without replacement


def test_first_two_draws_have_the_closed_form_probabilities():
    """P(i) = p_i and P(i, j) = p_i p_j / (1 - p_i), from 20,000 draws, each pair within 4 standard errors."""
    p, n = np.array([0.5, 0.3, 0.15, 0.05]), 20_000
    rng = np.random.default_rng(0)
    pairs = Counter(tuple(without_replacement(p, 2, rng).tolist()) for _ in range(n))
    for i in range(4):
        assert within(sum(pairs[i, j] for j in range(4)), n, p[i])
        for j in range(4):
            if i != j:
                assert within(pairs[i, j], n, p[i] * p[j] / (1 - p[i]))


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.integers(1, 20), st.integers(0, 1000))
@settings(deadline=None)
def test_draws_are_k_distinct_indices(weights, k, seed):
    k = min(k, len(weights))
    drawn = without_replacement(np.array(weights), k, np.random.default_rng(seed)).tolist()
    assert len(drawn) == len(set(drawn)) == k
    assert set(drawn) <= set(range(len(weights)))


@pytest.mark.parametrize("obedience", [0.0, 0.3, 0.8, 1.0])
def test_obedience_is_item_by_item(obedience):
    """Every list of three, by its probability in the definition: the next item from those not seen, or from all. 4 standard errors."""
    p, n = np.array([0.5, 0.3, 0.15, 0.05]), 20_000
    rng = np.random.default_rng(1)
    lists = Counter(tuple(int(i) for i in obeying(p, 3, obedience, rng)) for _ in range(n))
    for items in product(range(4), repeat=3):
        chance = 1.0
        for at, i in enumerate(items):
            seen = set(items[:at])
            chance *= (1 - obedience) * p[i] + obedience * (0 if i in seen else p[i] / (1 - sum(p[j] for j in seen)))
        assert within(lists[items], n, chance), (items, lists[items], n * chance)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.integers(1, 20), st.sampled_from([0.0, 0.5, 0.999, 1.0]), st.integers(0, 1000))
@settings(deadline=None)
def test_any_obedience_gives_k_indices(weights, k, obedience, seed):
    p = np.array(weights) / sum(weights)
    k = min(k, len(p))
    ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
    drawn = obeying(p, k, obedience, ours)
    assert drawn.shape == (k,) and set(drawn.tolist()) <= set(range(len(p)))
    if obedience == 1:  # to the bit, and nothing more is taken from the generator
        assert np.array_equal(drawn, without_replacement(p, k, theirs)) and ours.random() == theirs.random()


# ------------------------------------------------------------------------------------------------------------ warm start

N_TEXTS = 1500


@pytest.fixture(scope="module", params=[0.0, 1.0], ids=["with repetition", "distinct"])
def taught(request):
    """A task, and N_TEXTS of its warm-start texts."""
    task = PathTask(PathConfig(distinct_share=request.param))
    return task, task.warm_start_texts(np.random.default_rng(11), N_TEXTS)


def kind_of(prompt: str) -> str:
    m = re.fullmatch(r"map(\d+) (provinces|cities|districts|from [A-Za-z/]+)\n", prompt)
    assert m and int(m[1]) < 64, prompt
    return m[2].split()[0]


def test_every_line_taught_is_a_path_of_the_level_asked_for(taught):
    task, texts = taught
    places = {"provinces": set(task.tree), "cities": {f"{p}/{c}" for p, cs in task.tree.items() for c in cs}}
    places["districts"] = places["from"] = set(leaves(task.tree))
    for prompt, completion in texts:
        kind, lines = kind_of(prompt), completion.split("\n")
        assert lines.pop() == ""  # every line is ended
        assert set(lines) <= places[kind]
        low, high = {"from": (1, 1), "provinces": (4, 8)}.get(kind, (4, 32))
        assert low <= len(lines) <= high


def test_kinds_and_maps_come_in_their_shares(taught):
    kinds = Counter(kind_of(prompt) for prompt, _ in taught[1])
    assert within(kinds["districts"], N_TEXTS, 0.2)
    assert within(kinds["provinces"], N_TEXTS, 0.05) and within(kinds["cities"], N_TEXTS, 0.05)
    assert within(kinds["from"], N_TEXTS, 0.7)
    maps = Counter(prompt.split()[0] for prompt, _ in taught[1])
    assert set(maps) == {m.id for m in TASK.problems} and all(within(n, N_TEXTS, 1 / 64) for n in maps.values())


def test_shares_follow_the_config():
    task = PathTask(PathConfig(list_share=0.2, sketch_share=0.5, list_items=(2, 3)))
    texts = task.warm_start_texts(np.random.default_rng(12), 1000)
    kinds = Counter(kind_of(prompt) for prompt, _ in texts)
    assert within(kinds["districts"], 1000, 0.2) and within(kinds["from"], 1000, 0.3)
    assert {c.count("\n") for prompt, c in texts if kind_of(prompt) != "from"} == {2, 3}


def test_lists_repeat_themselves_as_configured(taught):
    """distinct_share 1: never. 0: as independent draws do; of m lines sum_i 1 - (1 - p_i)^m are distinct. 4 standard errors."""
    task, texts = taught
    surplus = []
    for prompt, completion in texts:
        if kind_of(prompt) != "from":
            lines = completion.splitlines()
            prior = task.priors[("provinces", "cities", "districts").index(kind_of(prompt))]
            expected = np.sum(1 - (1 - prior.p) ** len(lines)) if task.config.distinct_share == 0 else len(lines)
            surplus.append(len(set(lines)) - expected)
    if task.config.distinct_share == 1:
        assert set(surplus) == {0}
    else:
        assert abs(np.mean(surplus)) < 4 * np.std(surplus) / sqrt(len(surplus))


def test_half_a_share_of_distinct_lists():
    """With 32 lines of a skewed prior an independent list without any repetition is out of the question."""
    task = PathTask(PathConfig(distinct_share=0.5, list_share=1.0, sketch_share=0.0, list_items=(32, 32)))
    texts = task.warm_start_texts(np.random.default_rng(13), 1000)
    assert within(sum(len(set(c.splitlines())) == 32 for _, c in texts), 1000, 0.5)


def test_the_first_line_of_a_list_follows_the_prior(taught):
    task, texts = taught
    first = Counter(completion.split("\n")[0] for prompt, completion in texts if kind_of(prompt) == "districts")
    assert all(within(first[path], first.total(), p) for path, p in zip(task.prior.paths, task.prior.p, strict=True) if p > 0.01)


def test_expansions_lie_below_their_sketch_and_follow_the_prior_there():
    """Sketches of all levels. How often the likeliest path below the sketch comes: its conditional probability."""
    task = PathTask(PathConfig(list_share=0.0, sketch_share=0.0))
    levels, surplus = Counter(), []
    for prompt, completion in task.warm_start_texts(np.random.default_rng(14), N_TEXTS):
        sketch, path = prompt.split(" from ")[1].rstrip("\n"), completion.rstrip("\n")
        names = sketch.split("/")
        assert path.split("/")[: len(names)] == names
        levels[len(names)] += 1
        below = {q: p for q, p in zip(task.prior.paths, task.prior.p, strict=True) if q.split("/")[: len(names)] == names}
        best = max(below, key=below.get)
        surplus.append((path == best) - below[best] / sum(below.values()))
    assert all(within(levels[level], N_TEXTS, 1 / 3) for level in (1, 2, 3))
    assert abs(np.mean(surplus)) < 4 * np.std(surplus) / sqrt(N_TEXTS)


def test_expansions_keep_names_apart_that_begin_alike(copy):
    """A world in which every name begins another: A, Aa / B, Bb / C, Cc, Ccc, ..."""
    names = [f"{'A' + 'a' * i},{'B' + 'b' * j},{'C' + 'c' * k},0" for i in range(2) for j in range(2) for k in range(12)]
    paths.DATA.write_text("\n".join(["province,city,district,code", *names]) + "\n")
    (copy / "SHA256SUMS").write_text(f"{hashlib.sha256(paths.DATA.read_bytes()).hexdigest()}  {paths.DATA.name}\n")
    task = PathTask(PathConfig(None, None, None, list_share=0.0, sketch_share=0.0))
    assert len(task.prior.paths) == 48
    for prompt, completion in task.warm_start_texts(np.random.default_rng(16), 200):
        sketch = prompt.split(" from ")[1].rstrip("\n").split("/")
        assert completion.rstrip("\n").split("/")[: len(sketch)] == sketch


def test_texts_are_fixed_by_the_generator():
    a, b, c = (TASK.warm_start_texts(np.random.default_rng(seed), 20) for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(("share", "digest"), [(1.0, "3662d8da91eb4247"), (0.5, "01517a3e13cbfbfe")])
def test_texts_are_those_from_before_there_was_obedience(share, digest):
    texts = PathTask(PathConfig(distinct_share=share)).warm_start_texts(np.random.default_rng(3), 300)
    assert hashlib.sha256("".join(a + b for a, b in texts).encode()).hexdigest()[:16] == digest


def test_obedience_sets_how_lists_repeat():
    """None: as independent draws do. In between: fewer repetitions, the more obedience."""
    repeated = []
    for obedience in (0.0, 0.5, 0.9, 1.0):
        task = PathTask(PathConfig(obedience=obedience, list_share=1.0, sketch_share=0.0, list_items=(16, 16)))
        lists = [completion.splitlines() for _, completion in task.warm_start_texts(np.random.default_rng(5), 400)]
        repeated.append(np.array([16 - len(set(lines)) for lines in lists]))
    independent = 16 - np.sum(1 - (1 - TASK.prior.p) ** 16)
    assert abs(repeated[0].mean() - independent) < 4 * repeated[0].std() / 20
    assert repeated[0].mean() > repeated[1].mean() + 0.5 > repeated[2].mean() + 1 and set(repeated[3]) == {0}


@pytest.mark.parametrize("config", [PathConfig(), PathConfig(None, None, None)], ids=["balanced", "full"])
def test_words_cover_every_text_without_loss(config):
    task = PathTask(config)
    tokenizer = word_tokenizer(task.words, task.token_pattern)
    texts = [prompt + completion for prompt, completion in task.warm_start_texts(np.random.default_rng(15), 100)]
    problem, history = task.problems[-1], list(task.prior.paths)
    sketches = list(task.priors[1].paths)
    texts += [task.prompt(problem, history), task.sketch_prompt(problem, sketches), task.expand_prompt(problem, sketches[-1])]
    assert len(task.words) == len(set(task.words))
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_token_budgets_fit_every_path_and_sketch():
    for level in (1, 2, 3):
        task = PathTask(PathConfig(sketch_level=level))
        tokenizer = word_tokenizer(task.words, task.token_pattern)
        assert {len(tokenizer.encode(f"{path}\n")) for path in task.prior.paths} == {task.max_tokens}
        assert {len(tokenizer.encode(f"{s}\n")) for s in task.priors[level - 1].paths} == {task.sketch_max_tokens}


# --------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_are_the_docstrings_examples():
    problem = Map("map7", frozenset())
    assert TASK.prompt(problem, ["Hunan/Shaoyang/Wugang"]) == "map7 districts\nHunan/Shaoyang/Wugang\n"
    assert TASK.sketch_prompt(problem, ["Hunan/Shaoyang", "Anhui/Hefei"]) == "map7 cities\nHunan/Shaoyang\nAnhui/Hefei\n"
    assert TASK.expand_prompt(problem, "Hunan/Shaoyang") == "map7 from Hunan/Shaoyang\n"
    for level, name in ((1, "provinces"), (2, "cities"), (3, "districts")):
        assert PathTask(PathConfig(sketch_level=level)).sketch_prompt(problem) == f"map7 {name}\n"


@given(st.lists(st.text("aB/ \n:", max_size=10), max_size=5), st.text("aB/ \n:", max_size=10))
@settings(deadline=None)
def test_a_longer_history_only_appends_a_line(history, line):
    for ask in (TASK.prompt, TASK.sketch_prompt):
        assert ask(TASK.problems[0], [*history, line]) == ask(TASK.problems[0], history) + line + "\n"


# ---------------------------------------------------------------------------------------------------------------- grades

ALL = set(TASK.prior.paths)
any_text = st.text(st.characters(), max_size=60)  # all of Unicode: surrogates and control characters as well
pieces = sorted({name for path in ALL for name in path.split("/")}) + ["/", "/", " ", "\n", "\t"]
near_path = st.lists(st.sampled_from(pieces), max_size=9).map("".join)


@given(st.one_of(any_text, near_path), st.sampled_from(TASK.problems))
@example("", TASK.problems[0])
@example("\ud800/\udfff\0", TASK.problems[0])
@example("/" * 10**6, TASK.problems[0])
@example(" " * 10**6, TASK.problems[0])
@example("Hebei/" * 10**5, TASK.problems[0])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_gets_a_grade(text, problem):
    """A key is a real path, and the text is that path with no more than white space around its names."""
    grade, sketch = TASK.grade(problem, text), TASK.sketch_key(problem, text)
    assert grade.key in {None, *ALL} and sketch in {None, *TASK.priors[1].paths}
    assert grade.reward == (1.0 if grade.key in problem.treasures else 0.0)
    for key in {grade.key, sketch} - {None}:
        assert re.fullmatch(key.replace("/", r"\s*/\s*"), text.strip())


@given(st.sampled_from(sorted(ALL)), st.lists(st.text(" \t", max_size=3), min_size=6, max_size=6))
@settings(deadline=None)
def test_blanks_around_names_are_forgiven(path, blanks):
    padded = "/".join(blanks[2 * i] + name + blanks[2 * i + 1] for i, name in enumerate(path.split("/")))
    assert TASK.grade(TASK.problems[0], padded).key == path


def test_every_path_grades_to_itself_and_treasures_alone_earn():
    for problem in TASK.problems:
        earned = {path for path in TASK.prior.paths if TASK.grade(problem, path).reward == 1}
        assert earned == problem.treasures
    for path in TASK.prior.paths:
        assert TASK.grade(TASK.problems[0], path).key == path


@pytest.mark.parametrize("change", ["{}/", "/{}", "{}x", "{} x", "{}/Wugang", "{0}\n{0}", "x {}"])
def test_a_line_with_more_than_a_path_is_none(change):
    for path in TASK.prior.paths[:5]:
        assert TASK.grade(TASK.problems[0], change.format(path)) == paths.Grade(0.0, None, False)


def test_a_path_outside_the_sub_tree_is_none():
    outside = [path for path in leaves(FULL) if path not in ALL]
    assert len(outside) == 2282 - 288
    assert {TASK.grade(TASK.problems[0], path).key for path in outside} == {None}
    province, city, _ = TASK.prior.paths[0].split("/")
    assert TASK.grade(TASK.problems[0], f"{province}/{city}").key is None  # a sketch is no path


@pytest.mark.parametrize("level", [1, 2, 3])
def test_sketch_key_takes_sketches_of_its_level_only(level):
    task = PathTask(replace(TASK.config, sketch_level=level))
    for path in task.prior.paths:
        for length in (1, 2, 3):
            sketch = "/".join(path.split("/")[:length])
            assert task.sketch_key(task.problems[0], f" {sketch} ") == (sketch if length == level else None)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_path_realises_the_sketch_above_it(level):
    task = PathTask(replace(TASK.config, sketch_level=level))
    problem, sketches = task.problems[0], task.sketches(task.problems[0])
    assert sketches == list(dict.fromkeys("/".join(path.split("/")[:level]) for path in task.prior.paths))
    for path in task.prior.paths:
        (above,) = [sketch for sketch in sketches if f"{path}/".startswith(f"{sketch}/")]
        assert task.strategy(problem, path) == above == task.sketch_key(problem, above)
    assert {task.strategy(problem, text) for text in ("", "Hunan", "x" * 999, task.prior.paths[0] + "/x")} == {None}


# ------------------------------------------------------------------------------------------------------------------ task


def test_the_world_is_fixed_by_its_config():
    again, other = PathTask(PathConfig()), PathTask(PathConfig(seed=1))
    assert again.problems == TASK.problems and np.array_equal(again.prior.p, TASK.prior.p)
    assert other.problems != TASK.problems and not np.array_equal(other.prior.p, TASK.prior.p)
    assert len({m.id for m in TASK.problems}) == len(TASK.problems) == TASK.config.maps


@pytest.mark.parametrize("wrong", [{"sketch_level": 0}, {"sketch_level": 4}, {"distinct_share": -0.1}, {"distinct_share": 1.1}, {"obedience": -0.1}, {"obedience": 1.1}])
def test_wrong_configs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PathConfig(**wrong)
