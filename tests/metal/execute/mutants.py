"""Breaks the kernels in ways that the checks have to notice: mutants.py KERNELS SCRATCH."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutant import ASAN, BARRIER, Mutant
from two_pass_mutants import TWO_PASS_MUTANTS

from share import chosen

HERE = Path(__file__).parent


MUTANTS = [
    Mutant(
        "a chunk's bound is missing",
        "at_most(size - begin, chunk);",
        "static_cast<uint>(chunk);",
        "test_flat and SGD and float32",
        ASAN,
    ),
    Mutant(
        "a tile's bound is missing",
        "if (row < t.height && column < t.width) {",
        "if (row < t.height) {",
        "test_transposed and SGD and float32",
        ASAN,
    ),
    Mutant("a barrier is missing", BARRIER, "", "test_transposed and SGD and float32", "assert"),
    Mutant(
        "a barrier is not reached by all",
        BARRIER,
        f"if (index < 8) {{ {BARRIER} }}",
        "test_transposed and SGD and float32",
        "barriers are not reached",
    ),
    Mutant(
        "a pack's tensors begin a chunk late",
        "if (group >= arguments.tensors",
        "if (group > arguments.tensors",
        "test_a_pack and SGD and float32",
        f"{ASAN}|assert",
    ),
    Mutant(
        "the learning rate is not multiplied by the group's factor",
        "own[1].value * rate",
        "rate",
        "groups_of_their_own and SGD",
        "assert",
    ),
    Mutant(
        "a parameter that something else has written is not seen",
        "return w == rounded ? master : w;",
        "return master == master ? master : w;",
        "test_the_weight and SGD and masters_flat1",
        "assert",
    ),
    Mutant(
        "a tie goes towards zero in a remainder",
        "(bits + 0x8000u)",
        "(bits + 0x7fffu)",
        "test_every_bfloat16_with",
        "assert",
    ),
    Mutant(
        "a block's size is found without its last thread",
        "i < first + threads_of_block",
        "i + 1 < first + threads_of_block",
        "test_codes_scales",
        "assert",
        library="AdamW",
        kernels="codes",
    ),
    Mutant(
        "the barrier behind the sizes of a block is missing",
        f"= largest[s];\n    }}\n    {BARRIER}",
        "= largest[s];\n    }",
        "test_codes_scales",
        "assert",
        library="AdamW",
        kernels="codes",
    ),
    Mutant(
        "the scales are those of the next block",
        "first / elements_of_block;",
        "first / elements_of_block + 1;",
        "test_codes_scales",
        f"{ASAN}|assert",
        library="AdamW",
        kernels="codes",
    ),
    Mutant(
        "codes are cut off instead of rounded",
        "reciprocal) * 127.0f + 0.5f",
        "reciprocal) * 127.0f",
        "test_codes_scales",
        "assert",
        library="AdamW",
        kernels="codes",
    ),
    Mutant(
        "codes have no sign",
        "x < 0.0f ? -code : code",
        "code",
        "test_codes_scales",
        "assert",
        library="AdamW",
        kernels="codes",
    ),
    Mutant(
        "random bits are the same in every step",
        "tensor ^ mixed(static_cast<unsigned>(as_int(step)))",
        "tensor",
        "test_results_are_those and SGD and rounds_flat1",
        "assert",
    ),
    Mutant(
        "a tensor's key is not read",
        "at.rounding_key = tensor.rounding_key;",
        "",
        "test_results_are_those and SGD and rounds_flat1",
        "assert",
    ),
    Mutant(
        "an average moves by its decay",
        "h.rate.value",
        "h.rate.one_minus",
        "test_the_average and SGD and ema_flat1",
        "assert",
    ),
    Mutant(
        "an unset average stays so",
        "average == average && rate < 1.0f",
        "rate < 1.0f",
        "test_the_average and SGD and ema_flat1",
        "assert",
    ),
    Mutant(
        "an average is of the weight that is not rounded",
        "return Format::widen(Format::narrow(e.w));",
        "return e.w;",
        "test_the_average and SGD and ema_flat1",
        "assert",
    ),
    Mutant(
        "a chunk's place has 32 bits",
        "static_cast<ulong>(group - tensor.first_chunk) * chunk",
        "static_cast<ulong>((group - tensor.first_chunk) * chunk)",
        "test_flat_beyond",
        "assert|Segmentation|SEGV",
    ),
    Mutant(
        "bfloat16 is cut off instead of rounded",
        "bits + 0x7fffu + (bits >> 16 & 1u)",
        "bits",
        "test_flat and SGD and bfloat16",
        "assert",
    ),
    Mutant(
        "a step that is not finite is applied",
        "if (!is_applied(uniforms.scale.factor)) {",
        "if (false) {",
        "is_skipped and SGD",
        "assert",
    ),
    Mutant(
        "elements of gradients are not clipped",
        "value_of<float>(own + 3 + count, scalars)",
        "infinity()",
        "are_scaled and SGD",
        "assert",
    ),
    Mutant(
        "an update takes the scalars of the first group",
        "uniforms_of<Rule>(group_uniforms, tensor.group)",
        "uniforms_of<Rule>(group_uniforms, 0)",
        "groups_of_their_own and SGD",
        "assert",
    ),
    Mutant(
        "a transposed update takes the scalars of the first group",
        "uniforms_of<Rule>(group_uniforms, matrix.group)",
        "uniforms_of<Rule>(group_uniforms, 0)",
        "each_way_takes and transposed and SGD",
        "assert",
    ),
    Mutant(
        "all groups have the hyperparameters of the first",
        "sources + group * (count + 4)",
        "sources",
        "groups_of_their_own and SGD",
        "assert",
    ),
    Mutant(
        "the groups' uniforms overlap",
        "group_uniforms + group * Uniforms<Rule>::floats",
        "group_uniforms + group",
        "groups_of_their_own and SGD",
        f"{ASAN}|assert",
    ),
    Mutant(
        "a result overwrites the operand of another",
        "in0_2, {in0_0, in0_1}",
        "in0_2, {in0_1, in0_0}",
        "test_flat and Lion and float32",
        "assert",
        "Lion",
    ),
    Mutant(
        "Adafactor takes the scalars of the first group",
        "uniforms_of<Adafactor>(group_uniforms, t.group)",
        "uniforms_of<Adafactor>(group_uniforms, 0)",
        "check_adafactor and each_pass_takes",
        "assert",
        "Adafactor",
    ),
    Mutant(
        "a tile of Adafactor's has too many lines",
        "tile.height = at_most(tile.lines - tile.top, adafactor_lines);",
        "tile.height = adafactor_lines;",
        "check_adafactor and test_a_step and matrix",
        ASAN,
        "Adafactor",
    ),
    Mutant(
        "the sums of lines are added up too early",
        "wait_for_group();\n    put_lines(",
        "put_lines(",
        "check_adafactor and test_a_step and matrix",
        "assert",
        "Adafactor",
    ),
    Mutant(
        "not all threads wait before a matrix's mean is summed",
        "staged[index] = x;",
        "staged[index] = x; if (index == 0) { wait_for_group(); }",
        "check_adafactor and test_a_step and matrix",
        "barriers are not reached",
        "Adafactor",
    ),
    Mutant(
        "the place of a tile has 32 bits",
        "return (static_cast<ulong>(tile.matrix) * tile.lines + tile.top + line) *",
        "return (tile.matrix * tile.lines + tile.top + line) *",
        "check_adafactor and beyond and matrix",
        "assert|Segmentation|SEGV",
        "Adafactor",
    ),
    Mutant(
        "what a long sum loses is forgotten",
        "sum.rounded + sum.lost",
        "sum.rounded",
        "millions_of_parts",
        "assert",
        "Adafactor",
    ),
    Mutant(
        "Adafactor applies a step that is not finite",
        "!t.skip_nonfinite ||",
        "true ||",
        "check_adafactor and is_skipped",
        "assert",
        "Adafactor",
    ),
    Mutant(
        "a chunk's bound is missing in the norm",
        "i < count ? count - i : 0",
        "count",
        "check_norm and test_a_tensor",
        f"{ASAN}|assert",
        "Norm",
    ),
    Mutant(
        "a chunk's place has 32 bits in the norm",
        "static_cast<ulong>(group - tensor.first_chunk) * norm_chunk",
        "static_cast<ulong>((group - tensor.first_chunk) * norm_chunk)",
        "check_norm and test_beyond",
        "assert|Segmentation|SEGV",
        "Norm",
    ),
    Mutant(
        "squares are not scaled",
        "clamp(static_cast<int>(largest >> 23) - 127, -126, 126)",
        "clamp(static_cast<int>(largest >> 23) - 127, 0, 0)",
        "check_norm and overflow",
        "assert",
        "Norm",
    ),
    Mutant(
        "what a float lacks of a sum is lost",
        "return {high, sum.low + lost, sum.exponent};",
        "return {high, sum.low, sum.exponent};",
        "check_norm and beside_the_first",
        "assert",
        "Norm",
    ),
    Mutant(
        "an infinite sum makes others NaN",
        "if (!(sum.high <= 3.402823466e38f)) {",
        "if (false) {",
        "check_norm and not_finite_is_not",
        "assert",
        "Norm",
    ),
    Mutant(
        "a barrier is missing between sums",
        BARRIER,
        "",
        "check_norm and test_a_tensor and float32",
        "assert",
        "Norm",
    ),
    *TWO_PASS_MUTANTS,
]


def run(mutant, kernels, folder):
    """What is wrong with how the checks take it; None if they notice."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "programs").mkdir(parents=True)
    changed = 0
    patterns = {f"*_{mutant.library}_{begin}*.metal" for begin in (mutant.kernels, "prepare")}
    for program in {path for each in patterns for path in (kernels / "programs").glob(each)}:
        text = program.read_text()
        changed += mutant.text in text
        text = text.replace(mutant.text, mutant.instead)
        (folder / "programs" / program.name).write_text(text)
    if not changed:
        return "the text to change is no longer there"
    subprocess.run([HERE / "compile", folder], check=True)
    command = [HERE / "check", folder, "-x", "-s", "-k", mutant.checks]
    result = subprocess.run(command, capture_output=True, text=True)
    output = result.stdout + result.stderr
    if result.returncode in (0, 5):
        return "no check fails"
    if not any(word in output for word in mutant.notice.split("|")):
        return f"the checks fail otherwise than with {mutant.notice}:\n{output[-3000:]}"
    return None


def main(kernels, scratch):
    mutants = chosen(MUTANTS)
    folders = [scratch / str(k) for k in range(len(mutants))]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(run, mutants, [kernels] * len(mutants), folders))
    for mutant, problem in zip(mutants, found, strict=True):
        if problem:
            print(f"{mutant.what}: {problem}")
    if not any(found):
        print(f"mutants: {len(mutants)} of {len(MUTANTS)} run, all noticed")
    return any(found)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
