"""Breaks the kernels in ways that the tests have to notice: mutants.py TESTS."""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from share import chosen

SOURCES = Path(__file__).parents[2] / "csrc/mlx_opt"
KERNELS = [*SOURCES.glob("backend/cuda/*.cu.h"), SOURCES / "rules/codes.h"]


class Mutant(NamedTuple):
    what: str
    text: str
    instead: str
    tests: str  # those to run, as doctest's -tc has it
    notice: str  # what they say, this | or that


ASAN = "AddressSanitizer"
DIFFERS = "ERROR: CHECK( mx::"
BARRIER = "a barrier is not reached by all threads"
ADAFACTOR = "Adafactor's means*"
LAMB = "Lamb of parameters*"
CODES = "codes in any layout"
CODEC = "every code*"
TAILS = "codes of tensors that end*"
MUTANTS = [
    Mutant(
        "a chunk's bound is missing",
        "const int count = remaining < chunk ? static_cast<int>(remaining) : chunk;",
        "const int count = chunk;",
        "chunks and tiles*",
        ASAN,
    ),
    Mutant(
        "a tile's bound is missing",
        "if (row < height && column < width) {",
        "if (row < height) {",
        "chunks and tiles*",
        ASAN,
    ),
    Mutant(
        "the barrier behind a transposed tile is missing",
        "__syncthreads();\n    if (columns % vector_width",
        "if (columns % vector_width",
        "chunks and tiles*",
        DIFFERS,
    ),
    Mutant(
        "a barrier is not reached by all",
        "__syncthreads();\n    if (columns % vector_width",
        "if (threadIdx.x < 8) __syncthreads();\n    if (columns % vector_width",
        "chunks and tiles*",
        BARRIER,
    ),
    Mutant(
        "random bits depend on the lane only",
        "static_cast<unsigned>(first + lane * apart));",
        "static_cast<unsigned>(lane * apart));",
        "a step that rounds*",
        DIFFERS,
    ),
    Mutant(
        "the barriers of a block's sum are missing",
        "__syncthreads();\n    if (threadIdx.x < half)",
        "if (threadIdx.x < half)",
        "the norm of tensors of any layout",
        DIFFERS,
    ),
    Mutant(
        "the barrier between a block's sums is missing",
        "__syncthreads();\n  const double update",
        "const double update",
        ADAFACTOR,
        DIFFERS,
    ),
    Mutant(
        "the barrier before a transposed strip is missing",
        "__syncthreads();\n      gradient.put(strip);",
        "gradient.put(strip);",
        "Adafactor with transposed*",
        DIFFERS,
    ),
    Mutant(
        "the barrier behind a transposed strip is missing",
        "gradient.put(strip);\n      __syncthreads();",
        "gradient.put(strip);",
        "Adafactor with transposed*",
        DIFFERS,
    ),
    Mutant(
        "a shuffle is not reached by all",
        "x += __shfl_xor_sync(",
        "if (threadIdx.x % 32 < 16) x += __shfl_xor_sync(",
        ADAFACTOR,
        "a shuffle is not reached by all threads of a warp",
    ),
    Mutant(
        "the bound of Adafactor's lines is missing",
        "return count < width ? static_cast<int>(count) : width;",
        "return width;",
        ADAFACTOR,
        ASAN,
    ),
    Mutant(
        "the bound of Adafactor's columns is missing",
        "if (column < width && tile.left + column < tile.columns) {",
        "if (column < width) {",
        ADAFACTOR,
        f"{ASAN}|{DIFFERS}",
    ),
    Mutant(
        "vectors are read where they are not aligned",
        "reinterpret_cast<unsigned long long>(*operands++) %",
        "0 * reinterpret_cast<unsigned long long>(*operands++) %",
        "*layout,*not aligned",
        "a vector that is not aligned",
    ),
    Mutant(
        "bfloat16 is cut off instead of rounded",
        "bits + 0x7fffu + (bits >> 16 & 1u)",
        "bits",
        "halves*",
        DIFFERS,
    ),
    Mutant(
        "all tensors are updated with the first group's scalars",
        "reinterpret_cast<const Uniforms<Rule>*>(group_uniforms)[group]",
        "reinterpret_cast<const Uniforms<Rule>*>(group_uniforms)[0]",
        "two groups*",
        DIFFERS,
    ),
    Mutant(
        "Adafactor's tensors are updated with the first group's scalars",
        "uniforms_of<Adafactor>(table.group_uniforms, tensor.group)",
        "uniforms_of<Adafactor>(table.group_uniforms, 0)",
        "groups of Adafactor",
        DIFFERS,
    ),
    Mutant(
        "all groups' scalars are made of the first group's hyperparameters",
        "table.groups[blockIdx.x]",
        "table.groups[0]",
        "groups with traced*",
        DIFFERS,
    ),
    Mutant(
        "a step that is not finite is applied",
        "return scaling != Scaling::if_finite ||",
        "return true ||",
        "gradients are scaled*",
        DIFFERS,
    ),
    Mutant(
        "elements of gradients are not clipped",
        "table.max_value ? *table.max_value : infinity()",
        "infinity()",
        "elements of the scaled*",
        DIFFERS,
    ),
    Mutant(
        "the sums of a tensor's last chunk are left out",
        "chunk < size_of(tensor); chunk +=",
        "chunk + 1 < size_of(tensor); chunk +=",
        LAMB,
        DIFFERS,
    ),
    Mutant(
        "all chunks of a tensor leave their sums in one place",
        "static_cast<Index>(index) * count_of_sums",
        "0",
        LAMB,
        DIFFERS,
    ),
    Mutant(
        "the barrier between the sums of warps and those of the block is missing",
        "__syncthreads();\n  if (threadIdx.x < warp)",
        "if (threadIdx.x < warp)",
        LAMB,
        DIFFERS,
    ),
    Mutant(
        "the second pass begins behind the last block",
        "return gridDim.x - 1 - blockIdx.x;",
        "return gridDim.x - blockIdx.x;",
        LAMB,
        f"{ASAN}|{DIFFERS}",
    ),
    Mutant(
        "the learning rate is not multiplied by the group's factor",
        "static_cast<float>(group.rate_scale) * *group.learning_rate",
        "*group.learning_rate",
        "two groups*",
        DIFFERS,
    ),
    Mutant(
        "all tensors' rates are made with the first group's scalars",
        "const Uniforms<Rule>& uniforms = uniforms_of<Rule>(table.group_uniforms, tensor.group);",
        "const Uniforms<Rule>& uniforms = uniforms_of<Rule>(table.group_uniforms, 0);",
        "groups of a rule*",
        DIFFERS,
    ),
    Mutant(
        "what a step that is skipped keeps is not copied",
        "Pass::Kept::template copy_all<Out>(tensor.in + first, at, tensor.out, i + lane);",
        "",
        "Lamb's gradients*",
        DIFFERS,
    ),
    Mutant(
        "Adafactor's step that is not finite is applied",
        "return !table.skip_nonfinite ||",
        "return true ||",
        "Adafactor's gradients*",
        DIFFERS,
    ),
    Mutant(
        "a block's size is found by half of its threads",
        "for (int bits = lanes / 2; bits > 0; bits /= 2) {",
        "for (int bits = lanes / 2; bits > 1; bits /= 2) {",
        CODES,
        DIFFERS,
    ),
    Mutant(
        "a block's size is not found by all threads",
        "const int other = __shfl_xor_sync(",
        "if (threadIdx.x % 32 > 7) return x;\n    const int other = __shfl_xor_sync(",
        CODES,
        "a shuffle is not reached by all threads of a warp",
    ),
    Mutant(
        "each warp has one scale",
        "return column_of(0) == 0 && has(0);",
        "return threadIdx.x % 32 == 0 && has(0);",
        CODES,
        DIFFERS,
    ),
    Mutant(
        "codes have the scale of the slot before",
        "__float_as_int(x[lane]), *scale);\n    }\n    ++scale;",
        "__float_as_int(x[lane]), *scale);\n    }",
        CODES,
        DIFFERS,
    ),
    Mutant(
        "codes have the scale of the next block",
        "(tensor.in[Pass::first_scale + s])[part.block]",
        "(tensor.in[Pass::first_scale + s])[part.block + 1]",
        CODES,
        f"{ASAN}|{DIFFERS}",
    ),
    Mutant(
        "the bound of a tail of codes is missing",
        "return vectors || column_of(lane) < count;",
        "return vectors || count > 0;",
        TAILS,
        ASAN,
    ),
    Mutant(
        "the bound of a tile of codes is missing",
        "row < height ? elements_of_block : 0",
        "elements_of_block",
        CODES,
        ASAN,
    ),
    Mutant(
        "chunks that are not whole are updated in vectors of codes",
        "size_of(tensor) - begin >= chunk && In::",
        "In::",
        TAILS,
        ASAN,
    ),
    Mutant(
        "the scales of a step that is skipped are not copied",
        "copy<Float32, Float32>(from, part.block, to, part.block);",
        "",
        "codes of a step that is scaled*",
        DIFFERS,
    ),
    Mutant(
        "the random bits of elements apart are those of adjacent ones",
        "static_cast<unsigned>(first + lane * apart));",
        "static_cast<unsigned>(first + lane));",
        "codes of a step that rounds*",
        DIFFERS,
    ),
    Mutant(
        "codes are cut off instead of rounded",
        "root_of_part<1>(x, reciprocal) * 127.0f + 0.5f",
        "root_of_part<1>(x, reciprocal) * 127.0f",
        CODEC,
        DIFFERS,
    ),
    Mutant(
        "codes have no sign",
        "return x < 0.0f ? -code : code;",
        "return code;",
        CODES,
        DIFFERS,
    ),
    Mutant(
        "small numbers become 0",
        "int least = size_bits(x) < 1 ? 0 : 1;",
        "int least = 0;",
        CODEC,
        DIFFERS,
    ),
    Mutant(
        "parts are not bounded",
        "(bits < one ? bits : one) >> shift",
        "bits >> shift",
        CODEC,
        DIFFERS,
    ),
    Mutant(
        "a block of denormals has a scale",
        "largest >= 0x00800000",
        "largest >= 1",
        CODEC,
        DIFFERS,
    ),
    Mutant(
        "a block of infinities has a scale",
        "largest >= 0x7e800000   ?",
        "largest >= 0x7f800001 ?",
        CODEC,
        DIFFERS,
    ),
]


def run(tests, mutant):
    """What is wrong with how the tests take it; None if they notice."""
    if not any(mutant.text in path.read_text() for path in KERNELS):
        return "no kernel has the text to change"
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "CUDA_SCRATCH": scratch,
            "MLX_OPT_CACHE_DIR": f"{scratch}/cache",
            "CUDA_MUTANT": mutant.text,
            "CUDA_MUTANT_INSTEAD": mutant.instead,
        }
        result = subprocess.run(
            [tests, f"-tc={mutant.tests}"], env=environment, capture_output=True, text=True
        )
    output = result.stdout + result.stderr
    if result.returncode == 0:
        return "no test fails"
    if not any(notice in output for notice in mutant.notice.split("|")):
        return f"the tests fail otherwise than with {mutant.notice}:\n{output[-3000:]}"
    return None


def main(tests):
    mutants = chosen(MUTANTS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(run, [tests] * len(mutants), mutants))
    for mutant, problem in zip(mutants, found, strict=True):
        if problem:
            print(f"{mutant.what}: {problem}")
    if not any(found):
        print(f"mutants: {len(mutants)} of {len(MUTANTS)} run, all noticed")
    return any(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
