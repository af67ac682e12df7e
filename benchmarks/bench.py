"""Speed and memory beside peers, measured in one run, in turns, on one CPU thread.   python benchmarks/bench.py --help

    engine    tokens/s of `LocalEngine` and of transformers' `generate`, at several batch sizes
    lists     seconds for sequential groups: the same `sampling.sequential` over our engine and over `generate`, which computes each
              history again
    steps     seconds per training step (rollouts and updates): `sesa.training` and the same rollouts inside TRL (`sesa.distributed`)
    memory    peak resident memory of a process that does so, libraries and all

Who goes first changes every time, so a machine that slows down slows both. Figures and numbers: figures/<profile>/bench.*
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from sesa import figures, sampling
from sesa.arms import Training
from sesa.engines import Completion
from sesa.engines.local import LocalEngine
from sesa.intervals import interval
from sesa.models import tiny_lm, word_tokenizer
from sesa.readme import with_section
from sesa.runs import ROOT, write_atomic
from sesa.sampling import Sampling
from sesa.tasks.paths import PathTask
from sesa.timing import in_turns
from sesa.training import train

ARMS = ["parallel", "sequential", "sesa"]
PROFILES = {
    "smoke": {"batches": [4], "tokens": 8, "groups": [4], "repeats": 2, "steps": 2, "processes": 1},
    "laptop": {"batches": [16, 128, 512], "tokens": 64, "groups": [8, 32], "repeats": 9, "steps": 10, "processes": 4},
}


WORDS = {
    "engine": "engine: tokens/s of `LocalEngine` and of transformers' `generate`",
    "lists": "lists: seconds for sequential groups, key-value cache kept, and by `generate`",
    "steps": "steps: seconds per training step (16 groups of 8, 2 updates), packed, and the same rollouts in TRL",
    "memory": "memory: peak of that process, MiB",
}


class GenerateEngine:
    """The peer: transformers' own `generate`, one call per batch of prompts, nothing kept between calls."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def generate(self, prompts, *, seeds, stop, max_tokens, temperature=1.0, top_p=1.0, share=None):
        batch = self.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
        with torch.inference_mode():
            drawn = self.model.generate(
                **batch, do_sample=temperature > 0, temperature=temperature or None, top_p=top_p, top_k=0, max_new_tokens=max_tokens,
                eos_token_id=self.tokenizer.encode(stop), pad_token_id=self.tokenizer.pad_token_id,
            )[:, batch["input_ids"].shape[1] :]  # fmt: skip
        texts = self.tokenizer.batch_decode(drawn)
        return [Completion(text.split(stop)[0], stopped=True) for text in texts]


def compared(what, size, seconds, ours, peer, work=None, unit="s"):
    """Means of both (with `work`: work per second) and their ratio, peer / ours, with its 95% interval over `seconds`' rows."""
    ratio, low, high = interval(seconds[[peer]], over=seconds[[ours]])
    row = {"what": what, "size": size, "ours": seconds[ours].mean(), "peer": seconds[peer].mean()}
    if work:
        row |= {"ours": work / row["ours"], "peer": work / row["peer"]}
    return row | {"unit": "tokens/s" if work else unit, "times as fast": ratio, "low": low, "high": high}


# ------------------------------------------------------------------------------------------------------------ contenders


def engine_rows(plan):
    """Tokens/s: `tokens` new ones for every row, none stops. Random weights: for the time they take, weights do not matter."""
    tokenizer = word_tokenizer([f"w{i}" for i in range(300)])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=4096, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
    ).eval()
    model.lm_head = torch.nn.Linear(64, len(tokenizer))
    with torch.no_grad():
        model.lm_head.bias[tokenizer.convert_tokens_to_ids("\n")] = -1e9
    ours, peer, n = LocalEngine(model, tokenizer), GenerateEngine(model, tokenizer), plan["tokens"]
    for batch in plan["batches"]:
        prompts = [f"w{i % 100}" for i in range(batch)]
        contenders = {
            name: lambda engine=engine: engine.generate(prompts, seeds=range(batch), stop="\n", max_tokens=n)
            for name, engine in (("ours", ours), ("generate", peer))
        }
        yield compared("engine", f"batch {batch}", in_turns(contenders, plan["repeats"]), "ours", "generate", batch * n)


def list_rows(plan):
    """Seconds for 16 sequential groups of G."""
    task = PathTask()
    model, tokenizer = tiny_lm(task, 0)
    for size in plan["groups"]:
        contenders = {
            name: lambda engine=engine: sampling.sequential(engine, task, task.problems[:16], Sampling(size), 0)
            for name, engine in (("ours", LocalEngine(model, tokenizer)), ("generate", GenerateEngine(model, tokenizer)))
        }
        yield compared("lists", f"16 lists of {size}", in_turns(contenders, plan["repeats"]), "ours", "generate")


def packed_seconds(arm, steps):
    """The median seconds of `steps` training steps by `sesa.training`, without probes, after a first one that does not count."""
    task = PathTask()
    with tempfile.TemporaryDirectory() as folder:
        config = Training(arm=arm, steps=steps + 1, probe_every=10**6, checkpoint_every=10**6)
        train(*tiny_lm(task, 0), task, task.problems, config, 0, Path(folder))
        timings = pd.read_json(Path(folder) / "timings.jsonl", lines=True)
    return (timings["sample"] + timings["update"])[1:].median()


def trl_seconds(arm, steps):
    """The same inside TRL, without our metrics file."""
    from sesa.distributed import Records, make_trainer

    class Clock(TrainerCallback):
        def __init__(self):
            self.times = []

        def on_step_end(self, args, state, control, **_):
            self.times.append(time.perf_counter())

    task, clock = PathTask(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = Training(arm=arm, steps=steps + 1, checkpoint_every=10**6)
        trainer = make_trainer(tiny_lm(task, 0), task, config, 0, Path(folder))
        trainer.remove_callback(Records)
        trainer.add_callback(clock)
        trainer.train()
    return float(np.median(np.diff(clock.times[config.updates - 1 :: config.updates])))


STEP = {"ours": packed_seconds, "TRL": trl_seconds}


def alone(who, arm, steps):
    """[seconds, MiB]: what `STEP[who]` measures in a process of its own, and the memory that this took at most."""
    command = [sys.executable, __file__, "--alone", who, arm, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def step_rows(plan):
    for arm in ARMS:
        seen = {who: [] for who in STEP}
        for turn in range(plan["processes"]):
            for who in (list(STEP), list(STEP)[::-1])[turn % 2]:
                seen[who].append(alone(who, arm, plan["steps"]))
        seconds, peaks = (pd.DataFrame({who: [run[i] for run in runs] for who, runs in seen.items()}) for i in (0, 1))
        yield compared("steps", arm, seconds, "ours", "TRL")
        yield compared("memory", arm, peaks, "ours", "TRL", unit="MiB")


def peak_memory():
    """MiB that this process held at most. Linux says it of the program; elsewhere of the process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# ------------------------------------------------------------------------------------------------------------------- all


def draw(table, profile):
    figure, axes = plt.subplots(figsize=(6.5, 0.6 + 0.34 * len(table)))
    names = [f"{r.what}: {r.size}" for r in table.itertuples()]
    for y, r in enumerate(table.itertuples()):
        colour = {"engine": figures.SKY, "lists": figures.BLUE, "steps": figures.VERMILION, "memory": figures.GREY}[r.what]
        axes.plot([r.low, r.high], [y, y], color=colour)
        axes.plot(r.ratio, y, "o", color=colour)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="peer / ours: times as fast, or as small (means, 95% interval)", yticks=range(len(table)), yticklabels=names)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.invert_yaxis()
    figures.save_figure(figure, "bench", profile, table, threads=1)


def markdown(table):
    """The table of figures/<profile>/bench.csv for README."""
    lines = ["| | size | ours | peer | ours is so many times as fast, or as small |", "|---|---|---|---|---|"]
    for what, part in table.groupby("what", sort=False):
        for i, r in enumerate(part.to_dict("records")):
            ours, peer = (f"{r[who]:,.3f}" if r["unit"] == "s" else f"{r[who]:,.0f}" for who in ("ours", "peer"))
            lines.append(f"| {'' if i else WORDS[what]} | {r['size']} | {ours} | {peer} | {r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}] |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="laptop", choices=PROFILES)
    parser.add_argument("--alone", nargs=3, metavar=("WHO", "ARM", "STEPS"), help="one contender's steps, as JSON")
    parser.add_argument("--readme", action="store_true", help="measure nothing: write the table of figures/laptop/bench.csv into README.md")
    given = parser.parse_args()
    if given.readme:
        readme, table = ROOT / "README.md", pd.read_csv(ROOT / "figures" / "laptop" / "bench.csv")
        write_atomic(readme, with_section(readme.read_text(encoding="utf-8"), "bench", markdown(table)))
        return
    torch.set_num_threads(1)
    if given.alone:
        who, arm, steps = given.alone
        print(json.dumps([STEP[who](arm, int(steps)), peak_memory()]))
        return
    plan, rows = PROFILES[given.profile], []
    figures.use_style()
    for part in (engine_rows, list_rows, step_rows):
        for row in part(plan):
            rows.append(row)
            print("{what:7} {size:16} ours {ours:10.4g}  peer {peer:10.4g} {unit:9} x{times as fast:.2f} [{low:.2f}, {high:.2f}]".format(**row), flush=True)
    draw(pd.DataFrame(rows).rename(columns={"times as fast": "ratio"}), given.profile)


if __name__ == "__main__":
    main()
