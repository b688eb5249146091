# SPDX-License-Identifier: Apache-2.0
"""llama-server's flags, served by the llama.cpp that is embedded in xllamacpp.

Takes the flags it knows, spelt as llama-server spells them, and refuses every other one: a flag
that is dropped in silence is worse than a start that fails.

It stays in the foreground, writes its log to standard error, exits with 2 for a wrong flag, with
1 when the model cannot be served, and with 0 on SIGTERM or SIGINT.
"""

import argparse
import faulthandler
import signal
import sys


def parser() -> argparse.ArgumentParser:
    """The flags, with llama-server's names and defaults."""
    flags = argparse.ArgumentParser(prog="llama_server", allow_abbrev=False)
    add = flags.add_argument
    add("--model", "-m", required=True, help="path of a GGUF file")
    add("--alias", "-a", help="model name that requests carry")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8080)
    add("--ctx-size", "-c", type=int, default=0, help="tokens; 0 is the model's own")
    add("--parallel", "-np", type=int, default=1, help="requests served at a time")
    add("--kv-unified", "-kvu", action="store_true", help="one KV pool for all of them")
    add("--cache-ram", "-cram", type=int, default=0, help="MiB of RAM for old prompts")
    add("--threads", "-t", type=int, default=-1)
    add("--threads-batch", "-tb", type=int, default=-1)
    add("--batch-size", "-b", type=int, default=2048)
    add("--ubatch-size", "-ub", type=int, default=512)
    add("--flash-attn", "-fa", choices=("on", "off", "auto"), default="auto")
    add("--cache-type-k", "-ctk", choices=("f32", "f16", "bf16", "q8_0"), default="f16")
    add("--cache-type-v", "-ctv", choices=("f32", "f16", "bf16", "q8_0"), default="f16")
    add("--load-mode", "-lm", choices=("auto", "none", "mmap", "mlock", "mmap+mlock", "dio"),
        default="auto")
    add("--timeout", "-to", type=int, default=3600, help="seconds a client may be silent")
    add("--metrics", action="store_true", help="serve /metrics")
    return flags


def parameters(engine, asked):
    """xllamacpp's parameters for the flags.

    :param engine: the module ``xllamacpp``.
    :param asked: what :func:`parser` parsed.
    """
    wanted = engine.CommonParams()
    wanted.model.path = asked.model
    if asked.alias:
        wanted.model_alias = {asked.alias}
    wanted.hostnames = [asked.host]
    wanted.port = asked.port
    wanted.n_ctx = asked.ctx_size
    wanted.n_parallel = asked.parallel
    wanted.kv_unified = asked.kv_unified
    wanted.cache_ram_mib = asked.cache_ram
    wanted.cpuparams.n_threads = asked.threads
    wanted.cpuparams_batch.n_threads = asked.threads_batch
    wanted.n_batch = asked.batch_size
    wanted.n_ubatch = asked.ubatch_size
    flash = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[asked.flash_attn]
    wanted.flash_attn_type = getattr(
        engine.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_" + flash)
    wanted.cache_type_k = getattr(engine.ggml_type, "GGML_TYPE_" + asked.cache_type_k.upper())
    wanted.cache_type_v = getattr(engine.ggml_type, "GGML_TYPE_" + asked.cache_type_v.upper())
    mode = {"dio": "DIRECT_IO"}.get(asked.load_mode, asked.load_mode.upper().replace("+", "_"))
    wanted.load_mode = getattr(engine.llama_load_mode, "LLAMA_LOAD_MODE_" + mode)
    wanted.timeout_read = wanted.timeout_write = asked.timeout
    wanted.endpoint_metrics = asked.metrics
    # Not flags, because there is one right answer for a server that others reach through us:
    # no page of its own, no answers to other sites' scripts, nothing fetched from anywhere.
    wanted.ui = False
    wanted.cors_origins = ""
    wanted.offline = True
    return wanted


def main() -> int:
    """Serve until told to stop."""
    asked = parser().parse_args()
    faulthandler.enable()
    # Blocked before the engine starts its threads, so that they inherit it and the signal is
    # ours to wait for.
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(xllamacpp, asked))
    except RuntimeError as problem:
        print("llama_server: cannot serve %s: %s" % (asked.model, problem), file=sys.stderr)
        return 1
    print("llama_server: %s is served on %s" % (asked.model, server.listening_address),
          file=sys.stderr, flush=True)
    print("llama_server: stops on signal %d" % signal.sigwait(stop), file=sys.stderr, flush=True)
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
