#!/usr/bin/env python3
"""Looks at the machine code of the CUDA kernels: tools/check_sass.py [BUILD_DIR]

What a compiler may silently do otherwise is held to rules: products run on the tensor cores, FP8 ones in FP8, and are
not made to wait for each other; tiles come and go by TMA; nothing lies in local memory. Prints a row for each kernel
that a rule speaks of, and each rule that is broken. Needs no GPU.

cuobjdump and nvdisasm are taken from PATH, else from BUILD_DIR/sass_tools, where pip puts them. Exit code 0: every rule
holds, or there is nothing to look at (no CUDA kernels, no tools, which is said); 1: one does not.
"""
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys

PACKAGES = ["nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"]
SHOWN = ["QGMMA", "HGMMA", "HMMA", "WARPGROUP.DEPBAR", "UTMALDG", "UTMALDG.2D.MULTICAST", "LDGSTS", "UTMASTG", "LDL",
         "STL"]

# (what is wrong, kernels that it speaks of, whether it holds of the count of instructions)
RULES = [
    ("uses local memory", r"", lambda n: n["LDL"] + n["STL"] == 0),
    ("FP8 products are not on the FP8 tensor cores", r"E4m3Products", lambda n: n["QGMMA"] > 0 and n["HGMMA"] == 0),
    ("bfloat16 products are not by wgmma", r"Bf16Products", lambda n: n["HGMMA"] > 0 and n["QGMMA"] == 0),
    # ptxas that cannot keep several in flight puts a wait behind each; four sum 128 of k (FP8) or 64 (bfloat16).
    ("products wait for each other", r"E4m3Products|Bf16Products",
     lambda n: n["WARPGROUP.DEPBAR"] * 2 <= n["QGMMA"] + n["HGMMA"]),
    ("tiles do not come by TMA", r"persistent_", lambda n: n["UTMALDG"] > 0),
    ("weight gradients of bfloat16 do not copy by rows where a group ends", r"persistent_kernel<.*Bf16Products.*SumSpans",
     lambda n: n["LDGSTS"] > 0),
    # But for gathered rows of B, which are weight gradients': nothing is shared there.
    ("blocks in pairs do not bring tiles for each other", r"persistent_kernel<(?!.*true, \(\S+Transposed\)2)",
     lambda n: n["UTMALDG.2D.MULTICAST"] > 0),
    # One as the kernel begins and one as it ends; more would be in its loops, for each stage.
    ("a fence for the whole GPU", r"persistent_", lambda n: n["MEMBAR.ALL.GPU"] <= 2),
    ("bfloat16 results do not leave by TMA", r"persistent_kernel<.*, octet::bfloat16> ?>\(",
     lambda n: n["UTMASTG"] > 0),
    # An epilogue keeps them apart from its ring, and nothing of h.
    ("codes of h and y are not made two at a time, or leave by TMA", r"persistent_kernel<.*SwigluCodes",
     lambda n: n["F2FP.SATFINITE.E4M3"] >= 48 and n["UTMASTG"] == 0),
    ("attention is not on the tensor cores", r"tensor_(forward|backward)_kernel<", lambda n: n["HMMA"] > 0),
]


def tools_in(build):
    """The environment in which both tools are found, or None."""
    own = build / "sass_tools"
    if not (shutil.which("cuobjdump") and shutil.which("nvdisasm")) and not own.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(own), *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            shutil.rmtree(own, ignore_errors=True)
            lines = done.stderr.strip().splitlines()
            print(f"check_sass: pip could not install {' and '.join(PACKAGES)}: {lines[-1] if lines else 'no word'}")
    folders = sorted({str(path.parent) for path in own.rglob("cuobjdump")})
    for path in own.rglob("bin/*"):
        path.chmod(0o755)
    environment = dict(os.environ, PATH=os.pathsep.join(folders + [os.environ.get("PATH", "")]))
    found = all(shutil.which(tool, path=environment["PATH"]) for tool in ("cuobjdump", "nvdisasm"))
    return environment if found else None


def kernels_of(path, environment):
    """Of one object file: the name of each kernel and how often it has each instruction, with each of its suffixes."""
    text = subprocess.run(["cuobjdump", "-sass", str(path)], env=environment, check=True, capture_output=True,
                          text=True).stdout
    counts = {}
    for line in text.splitlines():
        if match := re.match(r"\s+Function : (\S+)", line):
            count = counts[match[1]] = collections.Counter()
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z0-9_]+(?:\.[A-Z0-9]+)*)", line):
            words = match[1].split(".")
            count.update(".".join(words[:n]) for n in range(1, len(words) + 1))
    names = subprocess.run(["c++filt"], input="\n".join(counts), check=True, capture_output=True,
                           text=True).stdout.splitlines()
    return list(zip(names, counts.values()))


def main():
    build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build")
    objects = sorted(build.glob("kernels/CMakeFiles/octet_kernels_cuda.dir/cuda/*.cu.o"))
    if not objects:
        print(f"check_sass: skipped: {build} has no CUDA kernels")
        return 0
    environment = tools_in(build)
    if environment is None:
        print("check_sass: skipped: there is no cuobjdump with its nvdisasm")
        return 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = sum(pool.map(lambda path: kernels_of(path, environment), objects), [])
    broken, shown = [], []
    for wrong, pattern, holds in RULES:
        matching = [(name, count) for name, count in kernels if re.search(pattern, name)]
        if not matching:
            broken.append(f'no kernel is called "{pattern}": the rule "{wrong}" speaks of none')
        broken += [f"{name}: {wrong}" for name, count in matching if not holds(count)]
        shown += [kernel for kernel in matching if pattern and kernel not in shown]
    print(" ".join(f"{title:>9}" for title in (s.split(".")[-1] for s in SHOWN)) + "  kernel")
    for name, count in shown:
        short = re.sub(r"octet::kernels::cuda::|octet::|void |\(octet[:\w]+\)(?=\d)", "", name).split("(")[0]
        print(" ".join(f"{count[title]:>9}" for title in SHOWN) + f"  {short}")
    for line in broken:
        print(f"check_sass: {line}")
    print(f"check_sass: {len(kernels)} kernels, {len(RULES)} rules, {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
