#!/usr/bin/env python3
"""Training steps of Octet and of PyTorch on this machine, in turn: tools/bench/compare_step.py [preset...]

Presets: tiny, small, medium, of configs/bench_*.yaml and of peer_torch_moe.py: the same shapes, optimizer, clipping and
balance loss, tokens of an order-1 chain. Each round runs every variant once, so that what the machine does besides
falls on all of them; the table gives medians over the rounds, their spread (largest less smallest, over the median),
the share of the multiply-add and bfloat16-dot peaks measured by the first run of each round, peak resident memory, and
how many times faster the first row is.

Needs build/octet (tools/build.sh octet) and, from Debian: python3-torch libopenblas0-openmp libdnnl-dev gcc.
bfloat16 autocast of PyTorch is left out on processors without AVX-512 BF16, where it is tens of times slower than
float32, unless --with-bf16 is given.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"  # Debian's, which sees python3-torch
OPENBLAS = "/usr/lib/x86_64-linux-gnu/openblas-openmp"
TUNABLES = ("glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:"
            "glibc.malloc.trim_threshold=1073741824")


def fail(text):
    sys.exit(f"compare_step: {text}")


def last_json(command, env):
    done = subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{' '.join(map(str, command))} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def variants(preset, args, shim, cpu):
    capability = "avx512" if "avx512f" in cpu else "avx2"
    threads = str(args.threads)

    def octet(recipe):
        return ([ROOT / "build/octet", "bench", "step", f"configs/bench_{preset}.yaml", f"precision.recipe={recipe}",
                 f"steps={args.steps}", f"threads={threads}", "json"], {})

    def torch(impl, amp, env):
        command = [PYTHON, "tools/bench/peer_torch_moe.py", "--preset", preset, "--impl", impl, "--threads", threads,
                   "--steps", str(args.steps)] + (["--amp"] if amp else [])
        return command, {"OMP_NUM_THREADS": threads, **env}

    tuned = {"ATEN_CPU_CAPABILITY": capability}
    rows = {f"octet {recipe}": octet(recipe) for recipe in ("fp8_block", "bf16", "fp32")}
    rows["torch tuned fp32, OpenBLAS"] = torch("tuned", False, {**tuned, "LD_LIBRARY_PATH": OPENBLAS})
    rows["torch tuned fp32, OpenBLAS, tunables"] = torch(
        "tuned", False, {**tuned, "LD_LIBRARY_PATH": OPENBLAS, "GLIBC_TUNABLES": TUNABLES})
    rows["torch tuned fp32, oneDNN, tunables"] = torch(
        "tuned", False, {**tuned, "LD_PRELOAD": str(shim), "GLIBC_TUNABLES": TUNABLES})
    if "avx512_bf16" in cpu or args.with_bf16:
        rows["torch tuned bf16, tunables"] = torch(
            "tuned", True, {**tuned, "LD_LIBRARY_PATH": OPENBLAS, "GLIBC_TUNABLES": TUNABLES})
    rows["torch stock fp32, as installed"] = torch("stock", False, {})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["tiny", "small", "medium"], metavar="preset")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a run; three more go before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--with-bf16", action="store_true", help="PyTorch in bfloat16 on any processor")
    args = parser.parse_args()
    if not (ROOT / "build/octet").exists():
        fail("build/octet is not there; run tools/build.sh octet")
    if subprocess.run([PYTHON, "-c", "import torch"], capture_output=True).returncode != 0:
        fail("Debian's PyTorch is not installed; apt-get install python3-torch libopenblas0-openmp libdnnl-dev gcc")
    cpu = Path("/proc/cpuinfo").read_text()
    cpu = next((line for line in cpu.splitlines() if line.startswith("flags")), "").split()
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "libonednn_blas.so"
        source = ROOT / "tools/bench/onednn_blas.c"
        built = subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", shim, "-ldnnl"], capture_output=True,
                               text=True)
        if built.returncode != 0:
            fail(f"onednn_blas.c does not build; apt-get install libdnnl-dev gcc\n{built.stderr}")
        for preset in args.presets:
            runs = {}
            for _ in range(args.rounds):
                for name, (command, env) in variants(preset, args, shim, cpu).items():
                    runs.setdefault(name, []).append(last_json(command, env))
            print_table(preset, args, runs)


def print_table(preset, args, runs):
    first = next(iter(runs.values()))
    peaks = {key: max(run[key] for run in first) for key in ("float32_peak_gflops", "bfloat16_pairs_peak_gflops")}
    base = statistics.median(run["ms_median"] for run in first)
    print(f"\n{preset}: {first[0]['tokens_per_step']} tokens a step, {args.threads} threads, {first[0]['isa']}; "
          f"{args.rounds} rounds of {args.steps} steps; peaks {peaks['float32_peak_gflops']:.0f} GFLOP/s (float32), "
          f"{peaks['bfloat16_pairs_peak_gflops']:.0f} (bfloat16 dot)\n")
    print(f"{'':<38} {'ms':>8} {'spread':>7} {'tokens/s':>9} {'GFLOP/s':>8} {'% FMA':>6} {'% dot':>6} {'RSS MiB':>8} "
          f"{'slower by':>9}")
    for name, results in runs.items():
        times = sorted(run["ms_median"] for run in results)
        ms = statistics.median(times)
        tokens = first[0]["tokens_per_step"] / ms * 1e3
        gflops = statistics.median(run["gflops"] for run in results)
        print(f"{name:<38} {ms:>8.1f} {100 * (times[-1] - times[0]) / ms:>6.1f}% {tokens:>9.0f} {gflops:>8.1f} "
              f"{100 * gflops / peaks['float32_peak_gflops']:>6.1f} "
              f"{100 * gflops / peaks['bfloat16_pairs_peak_gflops']:>6.1f} "
              f"{max(run['peak_rss_mib'] for run in results):>8} {ms / base:>8.2f}x", flush=True)


if __name__ == "__main__":
    main()
